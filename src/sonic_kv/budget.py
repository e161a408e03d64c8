"""How many entries a cache keeps, and which: pure functions on counts and scores."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sonic_kv.config import Budget
from sonic_kv.errors import BudgetError


def target_entries(
    budget: Budget, *, history: int, segments: int, prefix: int, open_length: int, bytes_per_entry: int
) -> int | None:
    """Memory entries (per layer and KV head) that `budget` allows; None if it sets no limit.

    A ratio counts the compressible history only and keeps at least one entry a segment. The
    absolute limits count the whole cache: prefix, memory and the raw open segment.

    Args:
        history: raw tokens of all closed segments.
        bytes_per_entry: bytes of one entry over all layers and KV heads, bookkeeping included.

    Raises:
        BudgetError: an absolute limit cannot hold even the prefix and one entry.
    """
    if budget.compression_ratio is not None:
        if budget.compression_ratio == 0.0:
            return None
        return max(round((1.0 - budget.compression_ratio) * history), min(segments, history))
    if budget.max_entries is not None:
        limit, name = budget.max_entries, f"max_entries={budget.max_entries}"
    elif budget.max_bytes is not None:
        limit, name = budget.max_bytes // bytes_per_entry, f"max_bytes={budget.max_bytes}"
    else:
        return None
    if limit <= prefix:
        raise BudgetError(f"{name} holds {limit} entries, and the prefix alone has {prefix}: raise the budget")
    return max(limit - prefix - open_length, 0)


def allocate(weights: Sequence[float], capacity: Sequence[int], total: int, floor: int = 1) -> list[int]:
    """Share `total` entries among segments in proportion to `weights`.

    Args:
        weights: non-negative, one a segment (length × importance × recency).
        capacity: most entries each segment can take.
        total: entries to share; with more than the capacity, all segments are full.
        floor: entries every segment gets first, while they last (the heaviest first).

    Returns:
        counts with `sum(counts) == min(total, sum(capacity))` and `counts[i] <= capacity[i]`.
    """
    if len(weights) != len(capacity):
        raise ValueError("weights and capacity differ in length")
    by_weight = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    counts = [0] * len(weights)
    left = min(total, sum(capacity))
    for _ in range(floor):
        for i in by_weight:
            if left and counts[i] < capacity[i]:
                counts[i] += 1
                left -= 1
    while left:
        open_ = [i for i in by_weight if counts[i] < capacity[i]]
        mass = sum(weights[i] for i in open_)
        shares = {i: left * (weights[i] / mass if mass > 0 else 1 / len(open_)) for i in open_}
        given = 0
        for i in open_:
            more = min(int(shares[i]), capacity[i] - counts[i])
            counts[i] += more
            given += more
        left -= given
        if not given:  # only fractions are left: largest first
            for i in sorted(open_, key=lambda i: (int(shares[i]) - shares[i], i))[:left]:
                counts[i] += 1
                left -= 1
    return counts


def select_global(scores: Tensor, segments: Tensor, total: int) -> Tensor:
    """Each head's best `total` entries over the whole history, one of every segment first.

    Args:
        scores: importance. (G, N)
        segments: segment of each entry. (G, N)
        total: entries to keep, at most N.

    Returns:
        kept indices, ascending. (G, total)
    """
    best = torch.zeros_like(segments, dtype=torch.bool)
    for segment in segments.unique():
        inside = torch.where(segments == segment, scores, -torch.inf)
        top = inside.argmax(-1, keepdim=True)
        best.scatter_(-1, top, best.gather(-1, top) | (segments.gather(-1, top) == segment))
    lifted = scores.double() + best * (scores.max() - scores.min() + 1.0).double()
    return lifted.topk(min(total, scores.shape[-1]), dim=-1).indices.sort(-1).values


def select_by_segment(scores: Tensor, segments: Tensor, counts: Sequence[int]) -> Tensor:
    """Each head's best `counts[s]` entries of every segment s.

    Args:
        scores: importance. (G, N)
        segments: segment of each entry; every head has at least `counts[s]` of segment s. (G, N)

    Returns:
        kept indices, ascending. (G, sum(counts))
    """
    kept = [
        torch.where(segments == segment, scores, -torch.inf).topk(count, dim=-1).indices
        for segment, count in enumerate(counts)
        if count
    ]
    if not kept:
        return segments.new_zeros((segments.shape[0], 0), dtype=torch.long)
    return torch.cat(kept, dim=-1).sort(-1).values
