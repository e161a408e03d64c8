"""Closing a segment as a pure function: from scores, positions, lengths and a budget to what is kept.

Sessions, the plans of training and the evaluation all decide here, and nowhere else.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sonic_kv.cache.cache import Lengths
from sonic_kv.compress.budget import (
    allocate,
    fewest_shared,
    least_entries,
    log_worth,
    select_by_segment,
    select_per_head,
    select_shared,
    target_entries,
)
from sonic_kv.compress.options import Allocation, Budget
from sonic_kv.model.nats import DamageScale

# Every segment keeps an entry while there are not more than this; then the oldest count as one.
MIN_GROUPS, ENTRIES_PER_GROUP = 16, 4


@dataclass(frozen=True)
class EntryBytes:
    """Bytes over all layers and KV heads, for limits in bytes.

    Attributes:
        entry: of an entry of the memory, bookkeeping included.
        raw: of an entry of the prefix.
        other: what the cache takes beside its entries.
    """

    entry: int = 1
    raw: int = 1
    other: int = 0


@dataclass(frozen=True)
class Account:
    """What has been dropped before, for budgets in nats.

    Attributes:
        scale: what makes nats of scores.
        dropped: scores of what every head has dropped, as one entry, recency included; -inf: nothing. (layers, G)
    """

    scale: DamageScale
    dropped: Tensor

    def damage(self, scores: Sequence[Tensor] = (), masks: Sequence[Tensor] = ()) -> float:
        """Predicted damage, in nats a later token, if of entries of these scores only those in `masks` stay."""
        gone = [layer[~mask] for layer, mask in zip(scores, masks, strict=True)]
        return self.scale.nats(log_worth([self.dropped, *gone]))

    def allowance(self, damage: float) -> float:
        """What may be dropped besides, as `log_worth` has it."""
        most, gone = self.scale.log_sum(damage), log_worth([self.dropped])
        return most + math.log1p(-math.exp(gone - most)) if gone < most else -math.inf


@dataclass(frozen=True)
class Kept:
    """What stays.

    Attributes:
        masks: of every layer, which entries. (G, N) bool
        lengths: the cache's when the others are gone.
        counts: entries of each segment, alike in all heads, where segments have shares of their own; else empty.
        whole: everything stays.
    """

    masks: list[Tensor]
    lengths: Lengths
    counts: list[int]
    whole: bool = False


def allowed(lengths: Lengths, budget: Budget, sizes: EntryBytes | None = None) -> int:
    """How many of the memory entries that `lengths` counts may stay (of a head, in the mean), before their scores are
    known: under a budget in nats, all of them.

    Raises:
        BudgetError: the budget cannot hold the prefix and an entry.
    """
    total = _target(lengths, budget, sizes)
    return lengths.memory if total is None else min(total, lengths.memory)


def close(
    scores: Sequence[Tensor],
    positions: Sequence[Tensor],
    lengths: Lengths,
    budget: Budget,
    allocation: Allocation,
    *,
    sizes: EntryBytes | None = None,
    account: Account | None = None,
) -> Kept:
    """What stays of memory and open segment when the segment is closed.

    Args:
        scores: of every layer, recency included, the higher the sooner kept; -inf: no entry. (G, N)
        positions: in the transcript. (G, N)
        lengths: as if everything stayed: `Lengths.closing`.
        allocation: how the entries are shared among layers, heads and segments.
        account: what has been dropped before, for a budget in nats.

    Raises:
        BudgetError: the budget cannot hold the prefix and an entry.
    """
    total = _total(scores, positions, lengths, budget, allocation, sizes, account)
    if total is not None:
        lengths = lengths.merge_oldest(max(MIN_GROUPS, total // ENTRIES_PER_GROUP))
    if total is None or total >= lengths.memory:
        return Kept([layer > -torch.inf for layer in scores], lengths, [], whole=True)
    return _choose(scores, positions, lengths, total, allocation)


def shrink(
    scores: Sequence[Tensor],
    positions: Sequence[Tensor],
    lengths: Lengths,
    budget: Budget,
    allocation: Allocation,
    *,
    sizes: EntryBytes | None = None,
    account: Account | None = None,
) -> Kept | None:
    """What stays of the memory under a lower budget; None: all of it. As `close`, but that no segment is closed."""
    total = _total(scores, positions, lengths, budget, allocation, sizes, account)
    if total is None or total >= lengths.memory:
        return None
    return _choose(scores, positions, lengths, total, allocation)


def _target(lengths: Lengths, budget: Budget, sizes: EntryBytes | None) -> int | None:
    sizes = sizes or EntryBytes()
    return target_entries(
        budget,
        history=lengths.history,
        segments=len(lengths.segment_starts),
        prefix=lengths.prefix,
        bytes_per_entry=sizes.entry,
        other_bytes=sizes.other + lengths.prefix * (sizes.raw - sizes.entry),
    )


def _total(
    scores: Sequence[Tensor],
    positions: Sequence[Tensor],
    lengths: Lengths,
    budget: Budget,
    allocation: Allocation,
    sizes: EntryBytes | None,
    account: Account | None,
) -> int | None:
    """Entries that stay, of a head in the mean; None: all of them."""
    most = budget.max_damage
    if most is None:
        return _target(lengths, budget, sizes)
    assert account is not None
    if allocation == "shared":
        total = fewest_shared(scores, account.allowance(most))
    else:
        total = bisect_left(
            range(lengths.memory),
            True,
            key=lambda total: (
                account.damage(scores, _choose(scores, positions, lengths, total, allocation).masks) <= most
            ),
        )
    return max(total, least_entries(len(lengths.segment_starts), lengths.history))


def _choose(
    scores: Sequence[Tensor],
    positions: Sequence[Tensor],
    lengths: Lengths,
    total: int,
    allocation: Allocation,
) -> Kept:
    """The best `total` entries, of a head in the mean."""
    lengths = replace(lengths, memory=total)
    if allocation == "shared":
        return Kept(select_shared(scores, total), lengths, [])
    owners = [_owners(layer, lengths.segment_starts) for layer in positions]
    if allocation == "per_head":
        found = [select_per_head(*layer, total) for layer in zip(scores, owners, strict=True)]
        return Kept(found, lengths, [])
    segments = len(lengths.segment_starts)
    owner = owners[0][0].cpu()
    held = torch.bincount(owner[(scores[0][0] > -torch.inf).cpu()], minlength=segments).tolist()
    counts = allocate(_expected(scores, owners, segments), held, total)
    return Kept(
        [select_by_segment(*layer, counts) for layer in zip(scores, owners, strict=True)], lengths, counts
    )


def _owners(positions: Tensor, starts: Sequence[int]) -> Tensor:
    """The number (from 0) of every entry's segment. (G, N)"""
    edges = torch.tensor(starts, device=positions.device)
    return (torch.bucketize(positions.long().contiguous(), edges, right=True) - 1).clamp_min(0)


def _expected(scores: Sequence[Tensor], owners: Sequence[Tensor], segments: int) -> list[float]:
    """The attention that each segment can expect: the softmax of the scores, summed over its entries (so: length ×
    mean importance × recency), averaged over layers and heads."""
    weights = torch.zeros(segments)
    for layer, owner in zip(scores, owners, strict=True):
        weights.index_add_(0, owner[0].cpu(), layer.softmax(-1).mean(0).float().cpu())
    found: list[float] = weights.tolist()
    return found
