"""Readers: what the rows of a forward see, and how they attend.

A forward of `model.forward` has one. In every layer it is given the rows' queries, and the keys and values that
the layer computed of them; it may look elsewhere too (a cache, the other dialogues of a packed run) and note what
it sees. Readers that store what is new do so before they read.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from sonic_kv.cache.attention import capped, masked_attention, outside
from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.layers import SessionLayer
from sonic_kv.model.layout import PREFIX, Layout, blocks, columns_of, mask_mod, visible
from sonic_kv.model.probe import Probe
from sonic_kv.model.reread import Asked, Repeat, Reread
from sonic_kv.model.rotary import Rope

BLOCK_ROWS = 128  # of a one-pass forward that read together, or more


class AttentionOptions(TypedDict):
    """How a layer attends: what logits are multiplied by, and where they are capped."""

    scale: float
    softcap: float | None


class Reader(Protocol):
    """What the rows of a forward see, and how they attend."""

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        """What the rows read in a layer.

        Args:
            layer: its number, from 0.
            query: of the rows, rotated. (B, H, T, D)
            key, value: of the rows; keys rotated. If the forward is given a cache, what its `update`
                returned of the layer. (B, G, T or S, D)
            scale: factor of the logits.
            softcap: bound of the logits, by tanh; None: none.

        Returns:
            (B, H, T, D)
        """
        ...


@dataclass
class OnePass:
    """The attention of a one-pass forward: a block of rows at a time, over the columns that it sees."""

    layout: Layout
    lifetime: Sequence[Tensor]  # per layer, (B, G, T)
    rope: Rope | None = None  # given: compact positions
    flex: bool = False  # FlexAttention over all rows, instead of SDPA in blocks
    probe: Probe | None = None  # of the same rows in every dialogue

    @functools.cached_property
    def _dialogues(self) -> list[tuple[Layout, list[tuple[slice, int, int]]]]:
        """Each dialogue's layout and blocks. With compact positions keys stand where one segment sees them."""
        least = BLOCK_ROWS if self.rope is None else 1
        return [(one, blocks(one, least)) for one in self.layout.dialogues()]

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        options: AttentionOptions = {"scale": scale, "softcap": softcap}
        lifetime = self.lifetime[layer]
        if self.probe is not None and self.probe.watches(layer):
            allowed = visible(self.layout, lifetime, self.probe.rows[0])
            self.probe.observe(layer, query, key, value, allowed, **options)
        if self.flex:
            return block_attention(query, key, value, self.layout, lifetime, **options)
        outputs = []
        for (layout, cut), alive, q, k, v in zip(
            self._dialogues, lifetime.split(1), query.split(1), key.split(1), value.split(1), strict=True
        ):
            parts = []
            for rows, lowest, highest in cut:
                columns = columns_of(layout, alive, lowest, highest)
                keys = k[:, :, columns]
                if self.rope is not None:
                    keys = self._moved(layer, keys, layout, alive, columns, lowest)
                mask = visible(layout, alive, rows, columns)
                parts.append(masked_attention(q[:, :, rows], keys, v[:, :, columns], mask, **options))
            outputs.append(torch.cat(parts, 2))
        return torch.cat(outputs)

    def _moved(
        self, layer: int, keys: Tensor, layout: Layout, lifetime: Tensor, columns: Tensor, number: int
    ) -> Tensor:
        """Keys as a segment's rows see them: those of the memory at consecutive positions behind the prefix."""
        assert self.rope is not None
        segment, index = layout.segment[0, columns], layout.index[0, columns]
        memory = (segment > PREFIX) & (segment < number) & (lifetime[:, :, columns] >= number)  # (1, G, K)
        order = index.argsort().expand_as(memory)  # by transcript: raw and Nexus columns mix
        rank = memory.gather(-1, order).cumsum(-1) - 1
        rank = torch.zeros_like(rank).scatter(-1, order, rank)
        prefix = (segment == PREFIX).sum()
        return self.rope.rotate(
            layer, keys, torch.where(memory, prefix + rank - layout.position[0, columns], 0)
        )


class Held:
    """Tokens that go on in their caches: as many of each dialogue, side by side.

    New entries go straight into a dialogue's cache, and its queries read them there: nothing is copied or padded.

    Args:
        caches: of the dialogues. (B)
        count: new tokens of each. (T)
        dtype: of the queries.
    """

    def __init__(
        self, caches: Sequence[SessionCache], count: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._layers: list[tuple[SessionLayer, ...]] = list(
            zip(*(cache.layers for cache in caches), strict=True)
        )
        # as SDPA adds them, made once instead of in every layer
        self._masks = [_causal(cache, count, dtype, device) for cache in caches]

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        options: AttentionOptions = {"scale": scale, "softcap": softcap}
        layers = self._layers[layer]
        if len(layers) == 1:  # the step of one dialogue is mostly what it takes to call operations
            layers[0].append(key, value)
            return layers[0].read(query, self._masks[0][layers[0].window is not None], **options)
        found = []
        for held, mask, own, *new in zip(
            layers, self._masks, query.split(1), key.split(1), value.split(1), strict=True
        ):
            held.append(*new)
            found.append(held.read(own, mask[held.window is not None], **options))
        return torch.cat(found)


def _causal(
    cache: SessionCache, count: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """What the newest `count` rows see of the head that has most: everything before them, and through a window."""
    if count == 1:
        return None, None
    size = cache.longest + count
    mask = torch.full((count, size), -torch.inf, dtype=dtype, device=device).triu(cache.longest + 1)
    if cache.window is None:
        return mask[None, None], None
    far = outside(torch.arange(cache.longest, size, device=device), size, cache.window)
    return mask[None, None], mask.masked_fill(far, -torch.inf)[None, None]


class Rereading:
    """Rows over tokens of open segments again, laid end to end: they read the caches and do not join them.

    Args:
        seen: of each request, what its rows see.
    """

    def __init__(self, requests: Sequence[Reread], seen: Sequence[Tensor], dtype: torch.dtype) -> None:
        edges = accumulate((len(request.offsets) for request in requests), initial=0)
        spans = [slice(a, b) for a, b in pairwise(edges)]
        # as SDPA adds it, made once instead of in every layer
        near = [r.near(s) for r, s in zip(requests, seen, strict=True)]
        self._parts = [
            (
                request,
                span,
                [(s, torch.zeros_like(s, dtype=dtype).masked_fill_(~s, -torch.inf)) for s in both],
            )
            for request, span, *both in zip(requests, spans, seen, near, strict=True)
        ]

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        options: AttentionOptions = {"scale": scale, "softcap": softcap}
        outputs = []
        for request, span, both in self._parts:
            own, held = query[:, :, span], request.cache.layers[layer]
            seen, mask = both[held.window is not None]
            request.entries.append((key[:, :, span], value[:, :, span]))
            if request.probe is not None:
                keys, values = held.padded()
                request.probe.observe(layer, own, keys, values, held.present(seen), **options)
            outputs.append(held.read(own, mask, **options))
        return torch.cat(outputs, dim=2)


class Repeating:
    """Rows behind caches, laid end to end: they read a cache and one another. What they attend to most is noted, and
    what some of them ask."""

    def __init__(self, requests: Sequence[Repeat]) -> None:
        edges = accumulate((request.rows for request in requests), initial=0)
        self._parts = [(r, slice(a, b)) for r, (a, b) in zip(requests, pairwise(edges), strict=True)]

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        outputs = []
        for request, span in self._parts:
            held = request.cache.layers[layer]
            own = (rows[:, :, span] for rows in (query, key, value))
            output, largest = held.read_noting(*own, scale=scale, softcap=softcap)
            outputs.append(output)
            request.largest.append(largest)
            asking = request.asking().to(query.device)
            request.asked.append(Asked(query[0, :, span].index_select(1, asking), scale, softcap))
        return torch.cat(outputs, dim=2)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    lifetime: Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """`masked_attention` under `layout.visible`, by FlexAttention: no dense mask, and empty blocks are skipped.

    Compiled on a GPU. On a CPU it is for comparison only: it has no backward pass there.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch, heads, length = query.shape[:3]
    rule = mask_mod(layout, lifetime, heads // key.shape[1])
    options: dict[str, Any] = {"device": query.device, "_compile": query.is_cuda}
    mask = create_block_mask(rule, batch, heads, length, length, **options)
    output: Tensor = _flex(query.is_cuda)(
        query,
        key,
        value,
        score_mod=None if softcap is None else lambda score, *_: capped(score, softcap),
        block_mask=mask,
        scale=scale,
        enable_gqa=heads != key.shape[1],
    )
    return output


@functools.cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention
