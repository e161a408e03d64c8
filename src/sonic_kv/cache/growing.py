"""A layer that grows in place, and of which every KV head may hold its own number of entries.

Entries of a head stand together. Stored entries are never overwritten: copies of a layer (snapshots, forks)
share them at no cost.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from sonic_kv.cache.attention import attend_heads, masked_attention
from sonic_kv.errors import ModelError

# An uneven layer of up to so many rows is read by all query heads at once, each blind to the other heads' rows; a
# larger one head by head, which costs more calls and less arithmetic.
MOST_AT_ONCE = 2048
SPARE_ENTRIES, SPARE_SHARE = 32, 16  # room left when a layer grows: entries of each head, and one in so many
UNEVEN = (
    "the heads of this cache hold different numbers of entries, which this attention cannot read: load the model with "
    "attn_implementation='sdpa' or 'eager', or keep as many in each with SessionConfig(allocation='per_head')"
)
ALIGNED = 16  # bytes: a head's entries on a GPU begin at a multiple of them
_claiming = threading.Lock()  # free rows of a buffer that layers share: the first one gets them
Sizes = tuple[int, ...]  # entries of each KV head
Heads = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # their keys and values


@dataclass
class _Hidden:
    """Where query heads see nothing.

    Attributes:
        mask: as it is added to logits: -inf at rows of other heads and at free ones. (H, rows)
        free: each query head's first free row, counted through all of `mask`. (H,)
    """

    mask: Tensor
    free: Tensor

    def show_next(self) -> None:
        """What is at the first free rows, to the query heads of its head."""
        self.mask.view(-1).index_fill_(0, self.free, 0.0)
        self.free += 1


@dataclass
class Buffer:
    """Storage of a growing layer, (rows, D): head after head, each with `room` free rows behind its entries.

    Attributes:
        starts: first row of each head.
        used: rows taken of each head's room.
        filled: how many of them `free` stands behind.
        stamp: of who has claimed rows last; 0: they were put here.
        free: first free row of each head; None while there is no room. (G,)
    """

    keys: Tensor
    values: Tensor
    starts: Sizes
    room: int = 0
    used: int = 0
    filled: int = 0
    stamp: int = 0
    free: Tensor | None = None
    hidden: _Hidden | None = None

    def heads(self, sizes: Sizes, outer: int = 0) -> Heads:
        """Keys and values of every KV head. Each (n, D), with `outer` dimensions of 1 before"""
        keys, values = (of.view((1,) * outer + of.shape) for of in (self.keys, self.values))
        spans = list(zip(self.starts, sizes, strict=True))
        return (
            tuple([keys.narrow(-2, start, n) for start, n in spans]),
            tuple([values.narrow(-2, start, n) for start, n in spans]),
        )

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Fill the last rows that were taken of every head. (1, G, T, D)"""
        assert self.free is not None
        count = keys.shape[2]
        if self.filled + count != self.used:  # others have filled those between
            self.free += self.used - count - self.filled
            self.hidden = None
        self.filled, self.stamp = self.used, 0
        rows = self.free if count == 1 else self.free[:, None] + torch.arange(count, device=keys.device)
        self.keys.index_copy_(0, rows.flatten(), keys.flatten(0, 2))
        self.values.index_copy_(0, rows.flatten(), values.flatten(0, 2))
        self.free += count
        if count == 1 and self.hidden is not None:
            self.hidden.show_next()
        else:
            self.hidden = None

    def hide(self, query_heads: int, sizes: Sizes) -> _Hidden:
        """What is hidden from heads of these sizes."""
        shared, rows = query_heads // len(sizes), len(self.keys)
        mask = self.keys.new_full((query_heads, rows), -torch.inf)
        for head, (start, n) in enumerate(zip(self.starts, sizes, strict=True)):
            mask[head * shared : (head + 1) * shared, start : start + n] = 0.0
        ends = [start + n for start, n in zip(self.starts, sizes, strict=True) for _ in range(shared)]
        free = [head * rows + end for head, end in enumerate(ends)]
        return _Hidden(mask, torch.tensor(free, device=mask.device))

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that takes memory."""
        free = () if self.free is None else (self.free,)
        hidden = () if self.hidden is None else (self.hidden.mask, self.hidden.free)
        return (self.keys, self.values, *free, *hidden)


class GrowingLayer(DynamicLayer):
    """A layer that is appended to in place, so that a new token does not copy the entries before it.

    Copies of a layer share its buffer, and nothing in it is ever overwritten: who stands at its end
    appends there; who has been overtaken, or finds no room, goes on in a buffer of its own.

    Layers that share a buffer may be used in different threads, one thread to a layer.

    Attributes:
        sizes: entries of each KV head; appending adds to all of them alike.
    """

    _buffer: Buffer

    def __init__(self) -> None:
        self.sizes: Sizes = ()
        self._taken = 0  # of the room
        super().__init__()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        heads, width = key_states.shape[1], key_states.shape[3]
        self.hold(key_states.new_empty(0, width), value_states.new_empty(0, width), (0,) * heads)

    def hold(self, keys: Tensor, values: Tensor, sizes: Sizes) -> None:
        """Hold these entries, (N, D) head after head, instead of any before."""
        self._buffer = Buffer(keys, values, tuple(accumulate(sizes[:-1], initial=0)))
        self.sizes, self._taken = sizes, 0

    @property
    def even(self) -> bool:
        """Whether all KV heads hold as many entries."""
        return len(set(self.sizes)) <= 1

    def readable(self) -> "GrowingLayer":
        """A layer that holds the same entries as they are computed: this one."""
        return self

    @property
    def keys(self) -> Tensor:
        """Of a layer whose heads hold as many entries. (1, G, S, D)"""
        layer = self.readable()
        return layer._side_by_side(layer._buffer.keys)

    @keys.setter
    def keys(self, _: None) -> None:
        """transformers makes a layer without any."""

    @property
    def values(self) -> Tensor:
        """As `keys`."""
        layer = self.readable()
        return layer._side_by_side(layer._buffer.values)

    @values.setter
    def values(self, _: None) -> None: ...

    def _side_by_side(self, rows: Tensor) -> Tensor:
        if not self.even:
            raise ModelError(UNEVEN)
        return rows.view(1, len(self.sizes), -1, rows.shape[-1])[:, :, : self.sizes[0]]

    def heads(self) -> Heads:
        """Keys and values of every KV head. Each (n, D)"""
        layer = self.readable()
        return layer._buffer.heads(layer.sizes)

    @property
    def entry_bytes(self) -> int:
        """Bytes of a key, and of a value."""
        return self._buffer.keys.shape[-1] * self._buffer.keys.element_size()

    def addresses(self) -> tuple[list[int], list[int]]:
        """Where the keys and the values of each head begin in memory."""
        buffer, entry = self._buffer, self.entry_bytes
        keys, values = buffer.keys.data_ptr(), buffer.values.data_ptr()
        return [keys + start * entry for start in buffer.starts], [
            values + start * entry for start in buffer.starts
        ]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append to every head. (1, G, T, D)"""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._extend(keys.shape[-2]).put(keys, values)

    def take(self) -> None:
        """Count the entries that `claim` has claimed rows for."""
        self._taken += 1
        self.sizes = tuple([n + 1 for n in self.sizes])

    def read(self, query: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None) -> Tensor:
        """Attention of queries over what is held.

        Args:
            query: (1, H, Q, D)
            mask: added to the logits of the head that has most entries, and its last columns to those of others.
                None: a single query that sees all. (1, 1, Q, S or more)

        Returns:
            (1, H, Q, D)
        """
        options: dict[str, Any] = {"scale": scale, "softcap": softcap}
        buffer = self._buffer
        if self.even:
            allowed = None if mask is None else mask[..., -self.sizes[0] :]
            return masked_attention(query, self.keys, self.values, allowed, **options)
        if mask is None and len(buffer.keys) <= MOST_AT_ONCE:
            heads = query.transpose(1, 2)  # rows of one head, which holds everything
            keys, values = buffer.keys[None, None], buffer.values[None, None]
            hidden = self._hidden(query.shape[1])
            return masked_attention(heads, keys, values, hidden, **options).transpose(1, 2)
        return attend_heads(query, *buffer.heads(self.sizes, 2), mask, **options)

    def _hidden(self, query_heads: int) -> Tensor:
        buffer = self._buffer
        if buffer.used != self._taken:  # overtaken: what is newer is another's
            return buffer.hide(query_heads, self.sizes).mask
        if buffer.hidden is None:
            buffer.hidden = buffer.hide(query_heads, self.sizes)
        return buffer.hidden.mask

    def _extend(self, count: int) -> Buffer:
        """Count `count` more entries of every head; the buffer in whose free rows they belong."""
        buffer = self._buffer
        with _claiming:
            mine = buffer.used == self._taken and self._taken + count <= buffer.room
            if mine:
                buffer.used += count
        if not mine:
            buffer = self._move(count)
            buffer.used = count
        self._taken = buffer.used
        self.sizes = tuple(n + count for n in self.sizes)
        return buffer

    def fit(self) -> None:
        """Go into a buffer without free rows if there are many: a layer that rests takes what it holds."""
        held = sum(self.sizes)
        if self.is_initialized and len(self._buffer.keys) - held > held // SPARE_SHARE:
            keys, values = (torch.cat(of) for of in self._buffer.heads(self.sizes))
            GrowingLayer.hold(self, keys, values, self.sizes)

    def _move(self, count: int) -> Buffer:
        """Into a buffer with room for `count` more entries of every head, and some."""
        mean = sum(self.sizes) // len(self.sizes) + count
        room = count + max(SPARE_ENTRIES, mean // SPARE_SHARE)
        starts = tuple(accumulate((n + room for n in self.sizes[:-1]), initial=0))
        rows, width = sum(self.sizes) + room * len(self.sizes), self._buffer.keys.shape[-1]
        # zeros: free rows may be read, with no weight, and must be finite
        keys, values = (old.new_zeros(rows, width) for old in (self._buffer.keys, self._buffer.values))
        for start, key, value in zip(starts, *self.heads(), strict=True):
            keys[start : start + len(key)], values[start : start + len(value)] = key, value
        free = torch.tensor(
            [start + n for start, n in zip(starts, self.sizes, strict=True)], device=keys.device
        )
        self._buffer, self._taken = Buffer(keys, values, starts, room, free=free), 0
        return self._buffer

    def drop_newest(self, count: int) -> None:
        """Take back the newest `count` entries of every head; what is appended next goes into a new buffer."""
        self.sizes, self._taken = tuple(n - count for n in self.sizes), self._taken - count


def claim(layers: Sequence[GrowingLayer], stamp: int, before: int) -> bool:
    """Claim rows for one more entry of every head, which others fill; `GrowingLayer.take` counts it.

    Args:
        stamp: marks the buffers that entries go to.
        before: how they were marked when rows were claimed last.

    Returns:
        whether nothing has changed since then
    """
    same, full = True, []
    with _claiming:
        for layer in layers:
            buffer = layer._buffer
            if buffer.used == layer._taken < buffer.room:
                buffer.used += 1
                same = same and buffer.stamp == before
                buffer.stamp = stamp
            else:
                full.append(layer)
    for layer in full:
        buffer = layer._move(1)
        buffer.used, buffer.stamp = 1, stamp
    return same and not full
