"""Laws of counts and selections: pure functions, checked on generated cases."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sonic_kv.compress.budget import (
    allocate,
    select_by_segment,
    select_per_head,
    select_shared,
    target_entries,
)
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import BudgetError, ConfigError
from sonic_kv.model.options import AdapterConfig
from sonic_kv.session.options import SamplingConfig

RATIOS = st.floats(0.001, 0.999)
SIZES = {"segments": 3, "prefix": 7, "bytes_per_entry": 100}


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_",
    [
        {"compression_ratio": 1.0},
        {"compression_ratio": -0.1},
        {"compression_ratio": math.nan},
        {"max_entries": 0},
        {"max_entries": -3},
        {"max_entries": 2.5},
        {"max_damage": 0.0},
        {"max_damage": math.inf},
        {"max_damage": 0.1, "compression_ratio": 0.5},
        {"max_bytes": 0},
        {"max_bytes": "many"},
        {"compression_ratio": 0.5, "max_entries": 9},
        {"max_entries": 9, "max_bytes": 9},
    ],
)
def test_impossible_or_contradictory_budget_is_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(**given_)
    assert "\n" not in str(caught.value)
    assert next(iter(given_)) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (SessionConfig, "min_segment_tokens", 0),
        (SessionConfig, "max_segment_tokens", 31),
        (SessionConfig, "candidates", 0.5),
        (SessionConfig, "candidates", math.inf),
        (SessionConfig, "candidates", math.nan),
        (SessionConfig, "policy", "none"),
        (SessionConfig, "positions", "moved"),
        (SessionConfig, "allocation", "even"),
        (SamplingConfig, "max_new_tokens", 0),
        (SamplingConfig, "temperature", -0.1),
        (SamplingConfig, "temperature", math.nan),
        (SamplingConfig, "temperature", math.inf),
        (SamplingConfig, "top_p", 0.0),
        (SamplingConfig, "top_p", 1.1),
        (SamplingConfig, "stop", ("",)),
        (SamplingConfig, "stop", "text"),
        (SamplingConfig, "seed", -1),
        (SamplingConfig, "seed", 2**64),
        (AdapterConfig, "form", "free"),
        (AdapterConfig, "lora_rank", -1),
        (AdapterConfig, "scorer_hidden", 0),
        (AdapterConfig, "turn_classes", 0),
    ],
)
def test_option_out_of_range_is_refused_by_name(config: type, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        config(**{field: value})
    assert "\n" not in str(caught.value)


def test_learned_form_needs_a_lora() -> None:
    with pytest.raises(ConfigError, match="lora_rank"):
        AdapterConfig(form="learned", lora_rank=0)


# --- target_entries -----------------------------------------------------------------------------


@given(RATIOS, st.integers(0, 5000), st.integers(0, 50))
def test_ratio_keeps_its_share_and_one_entry_a_segment(ratio: float, history: int, segments: int) -> None:
    kept = target_entries(Budget(compression_ratio=ratio), history=history, **{**SIZES, "segments": segments})
    assert kept is not None
    assert min(segments, history) <= kept <= history
    assert kept <= max((1 - ratio) * history + 0.5, segments)
    assert kept >= (1 - ratio) * history - 0.5


@given(RATIOS, RATIOS, st.integers(0, 5000))
def test_higher_ratio_never_keeps_more(a: float, b: float, history: int) -> None:
    few, many = (
        target_entries(Budget(compression_ratio=r), history=history, **SIZES) for r in (max(a, b), min(a, b))
    )
    assert few is not None
    assert many is not None
    assert few <= many


@pytest.mark.parametrize("budget", [Budget(), Budget(compression_ratio=0.0)])
def test_no_limit_has_no_target(budget: Budget) -> None:
    assert target_entries(budget, history=100, **SIZES) is None


@given(st.integers(1, 500), st.integers(0, 50), st.booleans())
def test_absolute_limit_counts_prefix_and_memory(limit: int, prefix: int, in_bytes: bool) -> None:
    budget = Budget(max_bytes=limit * 100 + 99) if in_bytes else Budget(max_entries=limit)
    sizes = {**SIZES, "prefix": prefix}
    if limit <= prefix:
        with pytest.raises(BudgetError, match="raise the budget"):
            target_entries(budget, history=1000, **sizes)
        return
    assert target_entries(budget, history=1000, **sizes) == limit - prefix


# --- allocate -----------------------------------------------------------------------------------


@st.composite
def shares(draw: st.DrawFn) -> tuple[list[float], list[int], int]:
    number = draw(st.integers(1, 8))
    weights = draw(st.lists(st.floats(1e-9, 1e6) | st.just(0.0), min_size=number, max_size=number))
    capacity = draw(st.lists(st.integers(0, 40), min_size=number, max_size=number))
    return weights, capacity, draw(st.integers(0, 400))


@given(shares())
def test_allocation_sums_exactly_and_respects_capacity_and_gives_each_one(
    case: tuple[list[float], list[int], int],
) -> None:
    weights, capacity, total = case
    counts = allocate(weights, capacity, total)
    assert sum(counts) == min(total, sum(capacity))
    assert all(0 <= n <= most for n, most in zip(counts, capacity, strict=True))
    least = [min(1, most) for most in capacity]
    if total >= sum(least):
        assert all(n >= low for n, low in zip(counts, least, strict=True))


@given(shares(), st.integers(1, 40))
def test_smaller_total_takes_from_segments_and_gives_to_none(
    case: tuple[list[float], list[int], int], fewer: int
) -> None:
    weights, capacity, total = case
    more = allocate(weights, capacity, total)
    less = allocate(weights, capacity, max(total - fewer, 0))
    assert all(a >= b for a, b in zip(more, less, strict=True))


@given(shares())
def test_heavier_segment_of_the_same_size_gets_no_less(case: tuple[list[float], list[int], int]) -> None:
    weights, _, total = case
    counts = allocate(weights, [30] * len(weights), total)
    for i, heavy in enumerate(weights):
        for j, light in enumerate(weights):
            if heavy > light:
                assert counts[i] >= counts[j]


def test_allocation_is_proportional_where_nothing_stops_it() -> None:
    assert allocate([1.0, 2.0, 5.0], [100, 100, 100], 80) == [10, 20, 50]
    assert allocate([1.0, 2.0, 5.0], [100, 100, 10], 40) == [10, 20, 10]


def test_the_first_ones_go_to_the_heaviest_where_they_do_not_last() -> None:
    assert allocate([1.0, 3.0, 2.0], [5, 5, 5], 2) == [0, 1, 1]


# --- selection ----------------------------------------------------------------------------------


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Scores and ascending segment numbers (G, N), some segment possibly missing in a head."""
    heads, entries, segments = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 5))
    values = st.lists(st.floats(-50, 50, width=32), min_size=entries, max_size=entries)
    numbers = st.lists(st.integers(0, segments - 1), min_size=entries, max_size=entries).map(sorted)
    scores = torch.tensor([draw(values) for _ in range(heads)])
    return scores, torch.tensor([draw(numbers) for _ in range(heads)]), draw(st.integers(0, entries))


@given(scored())
def test_global_selection_keeps_one_of_every_segment_then_the_best(case: tuple[Tensor, Tensor, int]) -> None:
    scores, segments, total = case
    kept = select_per_head(scores, segments, total)
    assert kept.sum(-1).tolist() == [total] * len(scores)
    chosen_rows = [mask.nonzero()[:, 0].tolist() for mask in kept]
    for score, segment, rows in zip(scores.tolist(), segments.tolist(), chosen_rows, strict=True):
        first = _first_of_each(score, segment)
        assert {segment[i] for i in rows} == set(segment) or len(set(segment)) > total
        if len(first) <= total:
            floor = sum(sorted(score[i] for i in first))
            rest = sorted((score[i] for i in range(len(score)) if i not in first), reverse=True)
            assert sum(score[i] for i in rows) == pytest.approx(
                floor + sum(rest[: total - len(first)]), abs=1e-3
            )
        else:
            chosen = sorted((score[i] for i in first), reverse=True)[:total]
            assert sorted((score[i] for i in rows), reverse=True) == chosen


def _first_of_each(score: list[float], segment: list[int]) -> list[int]:
    """One best entry of every segment."""
    inside = [[i for i, t in enumerate(segment) if t == s] for s in sorted(set(segment))]
    return [max(rows, key=lambda i: score[i]) for rows in inside]


@given(scored(), st.integers(0, 20))
def test_smaller_global_selection_is_a_subset(case: tuple[Tensor, Tensor, int], fewer: int) -> None:
    """What makes the elastic drop exact: selecting in two steps is selecting once."""
    scores, segments, total = case
    many = select_per_head(scores, segments, total)
    less = max(total - fewer, 0)
    again = select_per_head(scores.masked_fill(~many, -torch.inf), segments, less)
    assert torch.equal(again, select_per_head(scores, segments, less))


@given(scored(), st.integers(0, 20))
def test_shared_selection_takes_the_best_of_all_heads(case: tuple[Tensor, Tensor, int], fewer: int) -> None:
    scores, _, total = case
    layers = [scores, scores.flip(0)[:, : scores.shape[1] // 2 + 1] + 1.0]
    kept = select_shared(layers, total)
    size = total * sum(len(layer) for layer in layers)
    everything = torch.cat([layer.flatten() for layer in layers])
    chosen = torch.cat([layer[mask] for layer, mask in zip(layers, kept, strict=True)])
    assert len(chosen) == min(size, len(everything))
    assert torch.equal(chosen.sort().values, everything.sort().values[len(everything) - len(chosen) :])
    less = max(total - fewer, 0)
    left = [layer.masked_fill(~mask, -torch.inf) for layer, mask in zip(layers, kept, strict=True)]
    for again, once in zip(select_shared(left, less), select_shared(layers, less), strict=True):
        assert torch.equal(again, once)


@given(scored(), st.data())
def test_selection_by_segment_keeps_the_best_of_each(
    case: tuple[Tensor, Tensor, int], data: st.DataObject
) -> None:
    scores, segments, _ = case
    segments = segments[:1].expand_as(segments).contiguous()  # as an allocation by segment leaves them
    held = torch.bincount(segments[0]).tolist()
    counts = [data.draw(st.integers(0, n)) for n in held]
    kept = select_by_segment(scores, segments, counts)
    for score, mask in zip(scores, kept, strict=True):
        rows = mask.nonzero()[:, 0]
        for number, count in enumerate(counts):
            mine = rows[segments[0, rows] == number]
            inside = score[segments[0] == number]
            assert torch.equal(score[mine].sort().values, inside.sort().values[len(inside) - count :])
