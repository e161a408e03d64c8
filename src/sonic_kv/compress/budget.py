"""How many entries a cache keeps, and which: pure functions on counts and scores."""

from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace

import torch
from torch import Tensor

from sonic_kv.compress.options import Budget
from sonic_kv.errors import BudgetError


def target_entries(
    budget: Budget, *, history: int, segments: int, prefix: int, bytes_per_entry: int, other_bytes: int = 0
) -> int | None:
    """Memory entries (per layer and KV head) that `budget` allows; None if it sets no limit.

    A ratio counts the compressible history only and keeps at least one entry a segment. The
    absolute limits count prefix and memory, which are the whole cache right after a segment is closed;
    the raw open segment comes on top until it is closed itself.

    Args:
        history: raw tokens of all closed segments.
        bytes_per_entry: bytes of one entry over all layers and KV heads, bookkeeping included.
        other_bytes: what the cache takes beside so many bytes for every entry.

    Raises:
        BudgetError: an absolute limit cannot hold even the prefix and one entry.
    """
    if budget.compression_ratio is not None:
        if budget.compression_ratio == 0.0:
            return None
        return max(round((1.0 - budget.compression_ratio) * history), least_entries(segments, history))
    if budget.max_entries is not None:
        limit, name = budget.max_entries, f"max_entries={budget.max_entries}"
    elif budget.max_bytes is not None:
        limit, name = (budget.max_bytes - other_bytes) // bytes_per_entry, f"max_bytes={budget.max_bytes}"
    else:
        return None
    if limit <= prefix:
        raise BudgetError(
            f"{name} holds {limit} entries, and the prefix alone has {prefix}: raise the budget"
        )
    return limit - prefix


def least_entries(segments: int, history: int) -> int:
    """Entries that stay whatever is removed: one a segment."""
    return min(segments, history)


def log_worth(scores: Sequence[Tensor]) -> float:
    """log Σ exp(2 s): what entries of these scores count together; -inf: there are none. Any shapes"""
    return float(_together(scores).logsumexp(0))


def fewest_shared(scores: Sequence[Tensor], allowance: float) -> int:
    """Fewest entries, of a head in the mean, that `select_shared` may keep if all others count `allowance` at most.

    Args:
        scores: -inf: no entry. Per layer (G, N)
        allowance: as `log_worth` has it.
    """
    together = _together(scores)
    together = together[together > -torch.inf].sort().values
    dropped = int((together.logcumsumexp(0) <= allowance).sum())
    return -(-(len(together) - dropped) // sum(map(len, scores)))


def _together(scores: Sequence[Tensor]) -> Tensor:
    """2 s of all scores, as exact as the device can. (N,)"""
    flat = torch.cat([layer.flatten() for layer in scores])
    return 2.0 * flat.to(torch.float32 if flat.device.type == "mps" else torch.float64)


def allocate(weights: Sequence[float], capacity: Sequence[int], total: int) -> list[int]:
    """Share `total` entries among segments in proportion to `weights`.

    Every segment gets one first, the heaviest before others. Then entries are given one by one to the segment that is
    furthest below its share (Sainte-Laguë), so that a smaller total never gives any segment more: lowering a budget in
    steps is lowering it once.

    Args:
        weights: non-negative, one a segment (length × importance × recency).
        capacity: most entries each segment can take.
        total: entries to share; with more than the capacity, all segments are full.

    Returns:
        counts with `sum(counts) == min(total, sum(capacity))` and `counts[i] <= capacity[i]`.
    """
    if len(weights) != len(capacity):
        raise ValueError("weights and capacity differ in length")
    by_weight = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    counts = [0] * len(weights)
    left = min(total, sum(capacity))
    for i in by_weight:
        if left and capacity[i]:
            counts[i] += 1
            left -= 1

    def claim(i: int) -> tuple[float, int, int]:
        return -weights[i] / (2 * counts[i] + 1), counts[i], i

    claims = [claim(i) for i in by_weight if counts[i] < capacity[i]]
    heapify(claims)
    for _ in range(left):
        i = claims[0][-1]
        counts[i] += 1
        if counts[i] < capacity[i]:
            heapreplace(claims, claim(i))
        else:
            heappop(claims)
    return counts


def select_shared(scores: Sequence[Tensor], total: int) -> list[Tensor]:
    """The best entries of all layers and heads together, `total` a head in the mean.

    Args:
        scores: importance, comparable across layers and heads; -inf: no entry. Per layer (G, N)

    Returns:
        kept entries. Per layer (G, N) bool
    """
    together = torch.cat([layer.flatten() for layer in scores])
    held, heads = int((together > -torch.inf).sum()), sum(len(layer) for layer in scores)
    best = together.argsort(descending=True, stable=True)[: min(total * heads, held)]
    kept = torch.zeros_like(together, dtype=torch.bool)
    kept[best] = True
    parts = kept.split([layer.numel() for layer in scores])
    return [part.view_as(layer) for part, layer in zip(parts, scores, strict=True)]


def select_per_head(scores: Tensor, segments: Tensor, total: int) -> Tensor:
    """Each head's best `total` entries over the whole history, one of every segment first.

    Equal scores are taken in order, so that a smaller selection is part of a larger one.

    Args:
        scores: importance; -inf: no entry. (G, N)
        segments: segment of each entry. (G, N)
        total: entries to keep, at most as many as a head has.

    Returns:
        kept entries. (G, N) bool
    """
    if not total:
        return torch.zeros_like(scores, dtype=torch.bool)
    order = scores.argsort(dim=-1, descending=True, stable=True)  # best first
    owner, rank = segments.gather(-1, order), torch.arange(scores.shape[-1], device=scores.device)
    present = scores.gather(-1, order) > -torch.inf
    place = torch.where(present, rank, scores.shape[-1])
    best = owner.new_full((scores.shape[0], int(segments.max()) + 1), scores.shape[-1])
    best = best.scatter_reduce(-1, owner, place, "amin")  # rank of a segment's best entry
    first = present & (best.gather(-1, owner) == rank)
    leaders = first.cumsum(-1)  # they go before all others
    place = torch.where(first, leaders, leaders[:, -1:] + rank + 1 - leaders)  # from 1
    return torch.zeros_like(first).scatter(-1, order, place <= total)


def select_by_segment(scores: Tensor, segments: Tensor, counts: Sequence[int]) -> Tensor:
    """Each head's best `counts[s]` entries of every segment s.

    Args:
        scores: importance; -inf: no entry. (G, N)
        segments: segment of each entry; every head has at least `counts[s]` of segment s. (G, N)

    Returns:
        kept entries. (G, N) bool
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for segment, count in enumerate(counts):
        if count:
            inside = torch.where(segments == segment, scores, -torch.inf)
            kept.scatter_(-1, inside.argsort(dim=-1, descending=True, stable=True)[:, :count], True)
    return kept
