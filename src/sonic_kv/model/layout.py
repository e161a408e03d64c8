"""Who stands where and who sees whom in the one-pass forward: pure functions.

A dialogue is laid out as prefix, segment 1, its Nexus tokens, segment 2, its Nexus tokens, …, last
segment. Each column also has a *lifetime* per layer and KV head: the last segment whose queries
still see it. That one integer holds the budget, each head's own selection and the elastic drop,
because what a session dropped stays dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PREFIX = 0  # segment number of the prefix; dialogue segments count from 1
PADDING = -1
FOREVER = 1 << 30
ALL = slice(None)
Indices = Tensor | slice  # of rows or columns


@dataclass(frozen=True)
class Layout:
    """Rows of a one-pass forward. All tensors (B, T) int64, `nexus` bool."""

    index: Tensor  # transcript position of the row (a Nexus token: of its anchor)
    segment: Tensor  # PREFIX, 1, 2, …; PADDING
    nexus: Tensor
    view: Tensor  # last transcript position of its own segment that the row sees
    position: Tensor  # RoPE position
    origin: Tensor  # segment number of the row's prefix: PREFIX, unless dialogues are packed

    def to(self, device: torch.device) -> "Layout":
        return Layout(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def dialogues(self) -> list["Layout"]:
        """Each by itself (B = 1)."""
        rows = zip(*(tensor.split(1) for tensor in vars(self).values()), strict=True)
        return [Layout(*row) for row in rows]

    def default_lifetime(self) -> Tensor:
        """Lifetimes when nothing of a closed segment is kept: prefix forever, the rest own segment."""
        return torch.where(self.segment == PREFIX, FOREVER, self.segment)


def interleave(
    length: int,
    prefix_length: int,
    segment_ends: Sequence[int],
    nexus_indices: Sequence[Tensor],
    *,
    whole_segment: bool = False,
    memory_lengths: Sequence[int] | None = None,
) -> Layout:
    """Lay out one dialogue of `length` tokens.

    Args:
        segment_ends: transcript positions at which segments were closed; what follows is open.
        nexus_indices: for each closed segment the transcript positions of its Nexus tokens,
            ascending (of its other tokens the raw entries may be kept).
        whole_segment: Nexus tokens see their whole segment, not only up to their position.
        memory_lengths: for compact positions, the memory entries in front of each segment (the
            open one included); None: original positions.

    Returns:
        a `Layout` with B = 1.
    """
    starts = [prefix_length, *segment_ends]
    stops = [*segment_ends, length]
    rows: list[tuple[Tensor, int, bool, Tensor, Tensor]] = []
    prefix = torch.arange(prefix_length)
    rows.append((prefix, PREFIX, False, prefix, prefix))
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True), start=1):
        shift = 0 if memory_lengths is None else prefix_length + memory_lengths[number - 1] - start
        raw = torch.arange(start, stop)
        rows.append((raw, number, False, raw, raw + shift))
        if number <= len(nexus_indices):
            at = nexus_indices[number - 1]
            view = torch.full_like(at, stop - 1) if whole_segment else at
            rows.append((at, number, True, view, at + shift))
    return Layout(
        index=torch.cat([r[0] for r in rows])[None],
        segment=torch.cat([torch.full_like(r[0], r[1]) for r in rows])[None],
        nexus=torch.cat([torch.full_like(r[0], r[2], dtype=torch.bool) for r in rows])[None],
        view=torch.cat([r[3] for r in rows])[None],
        position=torch.cat([r[4] for r in rows])[None],
        origin=torch.cat([torch.full_like(r[0], PREFIX) for r in rows])[None],
    )


def pad(layouts: Sequence[Layout]) -> Layout:
    """Stack layouts of different lengths, padded on the right."""
    longest = max(layout.index.shape[-1] for layout in layouts)

    def stack(name: str, fill: int | bool) -> Tensor:
        tensors = [getattr(layout, name) for layout in layouts]
        padded = [torch.nn.functional.pad(t, (0, longest - t.shape[-1]), value=fill) for t in tensors]
        return torch.cat(padded)

    return Layout(
        index=stack("index", 0),
        segment=stack("segment", PADDING),
        nexus=stack("nexus", False),
        view=stack("view", 0),
        position=stack("position", 0),
        origin=stack("origin", PREFIX),
    )


def pack(layouts: Sequence[Layout], lifetime: Sequence[Sequence[Tensor]]) -> tuple[Layout, list[Tensor]]:
    """Several dialogues in one row, none of which sees another.

    A dialogue's segments, its prefix among them, are numbered on from those of the dialogue before it,
    and nothing of it lives longer than its own last segment. Transcripts follow one another.

    Args:
        layouts: of one dialogue each (B = 1), original positions.
        lifetime: for each dialogue, per layer. (1, G, T)
    """
    fields: dict[str, list[Tensor]] = {name: [] for name in vars(layouts[0])}
    alive: list[list[Tensor]] = [[] for _ in lifetime[0]]
    first = begin = 0  # segment number and transcript position at which the dialogue starts
    for layout, layers in zip(layouts, lifetime, strict=True):
        last = int(layout.segment.max())
        shift = {"segment": first, "origin": first, "index": begin, "view": begin}
        for name, tensor in vars(layout).items():
            fields[name].append(tensor + shift[name] if name in shift else tensor)
        for n, life in enumerate(layers):
            alive[n].append(life.clamp(max=last) + first)
        first, begin = first + last + 1, begin + int(layout.index.max()) + 1
    packed = Layout(**{name: torch.cat(tensors, -1) for name, tensors in fields.items()})
    return packed, [torch.cat(tensors, -1) for tensors in alive]


def lifetimes(layout: Layout, kept: Sequence[Sequence[Tensor]]) -> Tensor:
    """Lifetimes of one layer's columns from what each head held while each segment was open.

    Args:
        layout: of one dialogue (B = 1).
        kept: for segment 2, 3, … (the open one last) the transcript positions of the memory
            entries of every head. Each (n,)

    Returns:
        (1, G, T) int64
    """
    heads = len(kept[0]) if kept else 1
    alive = layout.default_lifetime()[:, None].repeat(1, heads, 1)  # (1, G, T)
    # A token's entry is its Nexus row, if it was re-encoded, else its raw row.
    slot = torch.full((int(layout.index.max()) + 1,), -1)
    for stored in (~layout.nexus & (layout.segment > PREFIX), layout.nexus):
        slot[layout.index[stored]] = torch.arange(layout.index.shape[-1])[stored[0]]
    for number, entries in enumerate(kept, start=2):
        for head, positions in zip(alive[0], entries, strict=True):
            head[slot[positions]] = number
    return alive


def own_segment(layout: Layout, rows: Indices = ALL, columns: Indices = ALL) -> Tensor:
    """Visibility inside a segment: raw tokens causally, Nexus tokens up to their view. (B, rows, columns) bool"""
    same = layout.segment[:, rows, None] == layout.segment[:, None, columns]
    past = layout.index[:, None, columns] <= layout.view[:, rows, None]
    return same & past & ~layout.nexus[:, None, columns]


def visible(layout: Layout, lifetime: Tensor, rows: Indices = ALL, columns: Indices = ALL) -> Tensor:
    """The hierarchical visibility mask: row q sees column k.

    A row sees its own segment (`own_segment`) and the columns of earlier segments that are still
    alive in its segment. Nobody sees the future, nor another Nexus token of its own segment.

    Args:
        lifetime: (B, G, T)

    Returns:
        (B, G, rows, columns) bool
    """
    segment = layout.segment[:, rows]
    earlier = layout.segment[:, None, columns] < segment[:, :, None]  # (B, rows, columns)
    alive = segment[:, None, :, None] <= lifetime[:, :, None, columns]  # (B, G, rows, columns)
    return own_segment(layout, rows, columns)[:, None] | (earlier[:, None] & alive)


def blocks(layout: Layout, least: int) -> list[tuple[slice, int, int]]:
    """Rows of one dialogue (B = 1) that follow one another, whole segments: lowest and highest of their numbers.

    Args:
        least: rows of a block, but for the last.
    """
    numbers, counts = layout.segment[0].unique_consecutive(return_counts=True)
    found, start, stop, held = [], 0, 0, []
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        held.append(number)
        stop += count
        if stop - start >= least or stop == len(layout.segment[0]):
            found.append((slice(start, stop), min(held), max(held)))
            start, held = stop, []
    return found


def columns_of(layout: Layout, lifetime: Tensor, lowest: int, highest: int) -> Tensor:
    """All columns that rows of the segments from `lowest` to `highest` see, in any head, and few others. (K,)

    Args:
        layout: of one dialogue (B = 1).
        lifetime: (1, G, T)
    """
    segment, nexus = layout.segment[0], layout.nexus[0]
    own = (segment >= lowest) & (segment <= highest) & ~nexus
    earlier = (segment < highest) & (lifetime[0].amax(0) >= lowest)
    return (own | earlier).nonzero()[:, 0]


def mask_mod(layout: Layout, lifetime: Tensor, repeats: int) -> Callable[..., Tensor]:
    """`visible` of one element at a time, for FlexAttention.

    Args:
        lifetime: (B, G, T)
        repeats: query heads per KV head.

    Returns:
        (batch, query head, row, column) → bool, all 0-dimensional tensors
    """
    segment, index, view = layout.segment, layout.index, layout.view

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (segment[b, q] == segment[b, k]) & ~layout.nexus[b, k] & (index[b, k] <= view[b, q])
        earlier = (segment[b, k] < segment[b, q]) & (segment[b, q] <= lifetime[b, h // repeats, k])
        return own | earlier

    return seen
