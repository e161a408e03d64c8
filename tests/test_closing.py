"""Laws of closing a segment as a pure function."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sonic_kv.cache.cache import Lengths
from sonic_kv.compress.closing import Kept, allowed, close, shrink
from sonic_kv.compress.options import Allocation, Budget
from sonic_kv.errors import BudgetError

LAYERS, HEADS, PREFIX = 2, 3, 2


def drawn(seed: int, sizes: list[int]) -> tuple[list[Tensor], list[Tensor], Lengths]:
    """Random scores of a history of segments of these sizes, nothing of which has been dropped."""
    generator = torch.Generator().manual_seed(seed)
    lengths = Lengths(prefix=PREFIX, closed=PREFIX)
    for size in sizes:
        lengths = lengths.closing(size)
    at = torch.arange(PREFIX, lengths.closed).expand(HEADS, -1)
    scores = [torch.randn(HEADS, lengths.history, generator=generator) for _ in range(LAYERS)]
    return scores, [at] * LAYERS, lengths


CASES = st.tuples(
    st.integers(0, 1000),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.sampled_from(["shared", "per_head", "segment"]),
    st.floats(0.05, 0.95),
)


def count(kept: Kept) -> int:
    return sum(int(mask.sum()) for mask in kept.masks)


@given(CASES)
def test_as_many_entries_are_kept_as_the_new_lengths_count(
    case: tuple[int, list[int], Allocation, float],
) -> None:
    seed, sizes, allocation, ratio = case
    scores, positions, lengths = drawn(seed, sizes)
    budget = Budget(compression_ratio=ratio)
    kept = close(scores, positions, lengths, budget, allocation)
    assert kept.lengths.memory == allowed(lengths, budget)
    assert count(kept) == kept.lengths.memory * LAYERS * HEADS
    assert kept.lengths.closed == lengths.closed
    assert kept.lengths.segments == len(sizes)
    if allocation != "shared":
        assert all((mask.sum(-1) == kept.lengths.memory).all() for mask in kept.masks)
    assert sum(kept.counts) == (kept.lengths.memory if allocation == "segment" and not kept.whole else 0)


@given(CASES, st.floats(0.05, 0.95))
def test_shrinking_afterwards_is_closing_with_the_lower_budget(
    case: tuple[int, list[int], Allocation, float], lower: float
) -> None:
    """But where segments have shares of their own, whose weights change with what is left of them."""
    seed, sizes, allocation, ratio = case
    allocation = "per_head" if allocation == "segment" else allocation
    scores, positions, lengths = drawn(seed, sizes)
    high, low = Budget(compression_ratio=min(ratio, lower)), Budget(compression_ratio=max(ratio, lower))
    once = close(scores, positions, lengths, low, allocation)
    kept = close(scores, positions, lengths, high, allocation)
    left = [layer.where(mask, -torch.inf) for layer, mask in zip(scores, kept.masks, strict=True)]
    again = shrink(left, positions, kept.lengths, low, allocation)
    masks, lengths = (kept.masks, kept.lengths) if again is None else (again.masks, again.lengths)
    assert all(torch.equal(a, b) for a, b in zip(masks, once.masks, strict=True))
    assert lengths == once.lengths


def test_without_a_limit_everything_stays_and_what_is_gone_is_not_counted_in() -> None:
    scores, positions, lengths = drawn(0, [5, 5])
    scores[1][0, 3] = -torch.inf
    for budget in (Budget(), Budget(compression_ratio=0.0), Budget(max_entries=100)):
        kept = close(scores, positions, lengths, budget, "shared")
        assert kept.whole
        assert kept.lengths == lengths
        assert count(kept) == LAYERS * HEADS * 10 - 1
        assert shrink(scores, positions, lengths, budget, "shared") is None


def test_many_segments_become_few_and_none_is_forgotten() -> None:
    scores, positions, lengths = drawn(0, [2] * 40)
    kept = close(scores, positions, lengths, Budget(compression_ratio=0.5), "per_head")
    assert kept.lengths.segments == 40
    assert len(kept.lengths.segment_starts) < 40
    assert shrink(scores, positions, lengths, Budget(compression_ratio=0.9), "per_head") is not None


def test_segments_share_the_entries_by_the_attention_they_can_expect() -> None:
    _, positions, lengths = drawn(0, [20, 20])
    scores = [torch.where(at < PREFIX + 20, math.log(3.0), 0.0) for at in positions]
    kept = close(scores, positions, lengths, Budget(compression_ratio=0.5), "segment")
    assert kept.counts == [15, 5]


def test_a_budget_that_cannot_hold_the_prefix_is_refused() -> None:
    scores, positions, lengths = drawn(0, [20])
    with pytest.raises(BudgetError, match="raise the budget"):
        close(scores, positions, lengths, Budget(max_entries=PREFIX), "shared")
