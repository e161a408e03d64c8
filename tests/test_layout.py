"""The hierarchical visibility mask against a slow reading of the design, row by row."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonic_kv.model import layout as lay
from sonic_kv.model.layout import visible


@dataclass(frozen=True)
class Row:
    """One row of the one-pass forward, as a person would write it down."""

    position: int  # transcript position
    segment: int  # 0: prefix
    nexus: bool


@dataclass
class Plan:
    """A dialogue, how it was cut, and what every head held while each segment was open."""

    length: int
    prefix: int
    ends: list[int]
    nexus: list[list[int]]
    kept: list[list[list[int]]]  # open segment 2, 3, … → head → transcript positions
    whole: bool

    def rows(self) -> list[Row]:
        rows = [Row(p, 0, False) for p in range(self.prefix)]
        start = self.prefix
        for number, end in enumerate([*self.ends, self.length], start=1):
            rows += [Row(p, number, False) for p in range(start, end)]
            if number <= len(self.nexus):
                rows += [Row(p, number, True) for p in self.nexus[number - 1]]
            start = end
        return rows

    def sees(self, head: int, query: Row, column: Row) -> bool:
        if column.segment == 0:
            return query.segment > 0 or column.position <= query.position
        if column.segment > query.segment:
            return False
        if column.segment == query.segment:  # its own segment's raw tokens
            if column.nexus:
                return False
            return column.position <= query.position or (query.nexus and self.whole)
        # an earlier segment: what the head still holds of it, encoded if the segment has Nexus tokens
        encoded = bool(self.nexus[column.segment - 1])
        held = self.kept[query.segment - 2][head]
        return column.nexus == encoded and column.position in held

    def layout(self) -> lay.Layout:
        nexus = [torch.tensor(n, dtype=torch.long) for n in self.nexus]
        return lay.interleave(self.length, self.prefix, self.ends, nexus, whole_segment=self.whole)

    def lifetimes(self, layout: lay.Layout) -> Tensor:
        return lay.lifetimes(layout, [torch.tensor(heads, dtype=torch.long) for heads in self.kept])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    prefix = draw(st.integers(0, 3))
    heads = draw(st.integers(1, 2))
    position, ends, nexus = prefix, [], []
    for _ in range(draw(st.integers(0, 3))):
        start, position = position, position + draw(st.integers(1, 5))
        ends.append(position)
        nexus.append(sorted(draw(st.sets(st.integers(start, position - 1)))))
    length = position + draw(st.integers(1, 4))
    kept: list[list[list[int]]] = []
    held: list[set[int]] = [set() for _ in range(heads)]
    start = prefix
    for end, anchors in zip(ends, nexus, strict=True):  # memory only ever shrinks, but for the new segment
        fresh = set(anchors or range(start, end))
        choices = [sorted(mine | fresh) for mine in held]
        count = draw(st.integers(0, min(map(len, choices))))
        held = [set(draw(st.permutations(choice))[:count]) for choice in choices]
        kept.append([sorted(mine) for mine in held])
        start = end
    return Plan(length, prefix, ends, nexus, kept, draw(st.booleans()))


@settings(max_examples=60)
@given(plans())
def test_everyone_sees_what_the_design_says_and_nothing_else(plan: Plan) -> None:
    layout, rows = plan.layout(), plan.rows()
    assert [
        *zip(layout.index[0].tolist(), layout.segment[0].tolist(), layout.nexus[0].tolist(), strict=True)
    ] == [(row.position, row.segment, row.nexus) for row in rows]
    mask = visible(layout, plan.lifetimes(layout))
    for head in range(mask.shape[1]):
        expected = [[plan.sees(head, query, column) for column in rows] for query in rows]
        assert mask[0, head].tolist() == expected


@settings(max_examples=40)
@given(plans())
def test_nothing_sees_the_future(plan: Plan) -> None:
    layout = plan.layout()
    mask = visible(layout, plan.lifetimes(layout))[0].any(0)
    for query, column in mask.nonzero().tolist():
        row, seen = plan.rows()[query], plan.rows()[column]
        if row.nexus and plan.whole:
            assert seen.segment <= row.segment
        else:
            assert seen.position <= row.position
        assert not (seen.nexus and seen.segment == row.segment)


@settings(max_examples=40)
@given(st.lists(plans(), min_size=2, max_size=3))
def test_padding_changes_nothing_and_is_seen_by_nobody(batch: list[Plan]) -> None:
    layouts = [plan.layout() for plan in batch]
    padded = lay.pad(layouts)
    width = padded.index.shape[-1]
    for row, (plan, single) in enumerate(zip(batch, layouts, strict=True)):
        alive, size = plan.lifetimes(single), single.index.shape[-1]
        filled = torch.nn.functional.pad(alive, (0, width - size), value=lay.PADDING)
        alone = lay.Layout(
            *(getattr(padded, name)[row : row + 1] for name in lay.Layout.__dataclass_fields__)
        )
        mask = visible(alone, filled)
        assert torch.equal(mask[:, :, :size, :size], visible(single, alive))
        assert not mask[:, :, :size, size:].any()
        assert mask.any(-1).all()  # every row sees something: softmax over nothing is NaN


@settings(max_examples=40)
@given(plans())
def test_original_positions_are_the_transcripts(plan: Plan) -> None:
    layout = plan.layout()
    assert torch.equal(layout.position, layout.index)
    ends = torch.tensor([plan.prefix, *plan.ends, plan.length])
    expected = torch.where(layout.nexus & plan.whole, ends[layout.segment] - 1, layout.index)
    assert torch.equal(layout.view, expected)


@settings(max_examples=40)
@given(plans())
def test_compact_positions_continue_behind_prefix_and_memory(plan: Plan) -> None:
    counts = [0, *(len(heads[0]) for heads in plan.kept)]
    nexus = [torch.tensor(n, dtype=torch.long) for n in plan.nexus]
    layout = lay.interleave(plan.length, plan.prefix, plan.ends, nexus, memory_lengths=counts)
    starts = [0, plan.prefix, *plan.ends]
    for row in range(layout.index.shape[-1]):
        segment, index = int(layout.segment[0, row]), int(layout.index[0, row])
        memory = 0 if segment == 0 else plan.prefix + counts[segment - 1]
        assert int(layout.position[0, row]) == memory + index - starts[segment]


def test_a_dropped_entry_stays_invisible() -> None:
    """A hand-written case: segment 1 is re-encoded, 2 stays raw, budgets shrink."""
    plan = Plan(7, 1, [3, 5], [[1, 2], []], [[[1, 2]], [[2, 4]]], whole=False)
    layout = plan.layout()
    assert plan.lifetimes(layout).tolist() == [[[lay.FOREVER, 1, 1, 2, 3, 2, 3, 3, 3]]]
    mask = visible(layout, plan.lifetimes(layout))[0, 0]
    assert mask[-1].nonzero()[:, 0].tolist() == [0, 4, 6, 7, 8]  # prefix, Nexus of 2, raw 4, own
    assert mask[5].nonzero()[:, 0].tolist() == [0, 3, 4, 5]  # segment 2 still saw both Nexus


def test_layout_without_closed_segments_is_causal() -> None:
    layout = lay.interleave(5, 2, [], [])
    mask = visible(layout, lay.lifetimes(layout, []))
    assert torch.equal(mask[0, 0], torch.ones(5, 5, dtype=torch.bool).tril())


@pytest.mark.parametrize("prefix", [0, 3])
def test_default_lifetime_keeps_the_prefix_alone(prefix: int) -> None:
    layout = lay.interleave(prefix + 4, prefix, [prefix + 2], [torch.tensor([prefix])])
    mask = visible(layout, layout.default_lifetime()[:, None])[0, 0]
    last = layout.index.shape[-1] - 1
    assert mask[last].nonzero()[:, 0].tolist() == [*range(prefix), last - 1, last]
