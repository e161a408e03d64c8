"""The session cache: prefix, memory (one share per layer and KV head), raw open segment.

It is an ordinary transformers `Cache`. With original positions its sequence length is the
transcript's, so that `generate(transcript, past_key_values=cache)` feeds exactly the new tokens.
Stored entries are never overwritten: a snapshot or a fork shares them at no cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE_ENTRIES, SPARE_SHARE = 32, 16  # room left when a layer grows: entries, and one in so many


@dataclass
class _Buffer:
    """Storage of a growing layer: (B, G, capacity, D), of which the first `used` columns are taken."""

    keys: Tensor
    values: Tensor
    used: int


class GrowingLayer(DynamicLayer):
    """A layer that is appended to in place, so that a new token does not copy the entries before it.

    `keys` and `values` (B, G, S, D) are views of a buffer with some room behind them. Copies of a layer
    (snapshots, forks) share it, and nothing in it is ever overwritten: who stands at its end appends
    there; who has been overtaken, or finds no room, goes on in a buffer of its own. Other tensors may
    be put in place of `keys` and `values` at any time.

    One thread at a time may append to layers that share a buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffer: _Buffer | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[..., :0, :].clone(), value_states[..., :0, :].clone()

    @property
    def stored(self) -> int:
        """Entries of one KV head."""
        return self.keys.shape[-2] if self.is_initialized else 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.stored
        end = start + key_states.shape[-2]
        buffer = self._buffer
        if buffer is None or not self._at_end_of(buffer) or end > buffer.keys.shape[2]:
            capacity = end + max(SPARE_ENTRIES, end // SPARE_SHARE)
            buffer = self._buffer = _Buffer(
                _with_room(self.keys, capacity), _with_room(self.values, capacity), start
            )
        buffer.keys[:, :, start:end] = key_states
        buffer.values[:, :, start:end] = value_states
        buffer.used = end
        self.keys, self.values = buffer.keys[:, :, :end], buffer.values[:, :, :end]
        return self.keys, self.values

    def _at_end_of(self, buffer: _Buffer) -> bool:
        return buffer.used == self.stored and all(
            mine.data_ptr() == whole.data_ptr()
            for mine, whole in ((self.keys, buffer.keys), (self.values, buffer.values))
        )


def _with_room(entries: Tensor, capacity: int) -> Tensor:
    """A copy of (B, G, S, D) entries in a tensor of `capacity` columns."""
    batch, heads, stored, width = entries.shape
    room = entries.new_empty(batch, heads, capacity, width)
    room[:, :, :stored] = entries
    return room


class SessionLayer(GrowingLayer):
    """One layer: keys and values (1, G, S, D) ordered prefix, memory, open segment.

    Attributes:
        positions: transcript positions of the memory entries. (1, G, n) int32
        scores: their importance, comparable across segments. (1, G, n) float32
        removed: raw tokens that are no longer stored, if they still count as length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.removed = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        shape = (1, key_states.shape[1], 0)
        self.positions = torch.empty(shape, dtype=torch.int32, device=key_states.device)
        self.scores = torch.empty(shape, device=key_states.device)

    def get_seq_length(self, *_: object) -> int:
        return self.stored + self.removed

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        # transformers 5.2 passes the positions of the new tokens, later versions their number
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.stored + new, self.removed

    def fill(self, keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor) -> None:
        """Hold these entries, in storage of exactly their size, instead of any before."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys, self.values, self.positions, self.scores = keys, values, positions, scores

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.keys, self.values, self.positions, self.scores) if self.is_initialized else ()


@dataclass(frozen=True)
class Memory:
    """What one layer keeps of the closed segments, as `SessionCache.replace_memory` takes it."""

    keys: Tensor  # (1, G, n, D)
    values: Tensor  # (1, G, n, D)
    positions: Tensor  # (1, G, n)
    scores: Tensor  # (1, G, n)


@dataclass(frozen=True)
class Lengths:
    """How many entries of each kind every KV head holds; what follows them is the open segment."""

    prefix: int = 0
    memory: int = 0
    segment_starts: tuple[int, ...] = ()  # transcript positions of the closed segments
    closed: int = 0  # transcript position at which the open segment starts


class SessionCache(Cache):
    """The compressed KV cache of one dialogue (batch size 1)."""

    layers: list[SessionLayer]

    def __init__(self, num_layers: int, *, compact: bool = False) -> None:
        super().__init__(layers=[SessionLayer() for _ in range(num_layers)])
        self.compact = compact
        self.lengths = Lengths()

    @property
    def stored(self) -> int:
        """Entries of one KV head: prefix, memory and open segment."""
        return self.layers[0].stored

    @property
    def open_length(self) -> int:
        """Raw tokens of the open segment."""
        return self.stored - self.lengths.prefix - self.lengths.memory

    @property
    def next_position(self) -> int:
        """RoPE position of the next token."""
        return self.stored if self.compact else self.logical_length

    @property
    def logical_length(self) -> int:
        """Tokens of the transcript that have been fed."""
        return self.lengths.closed + self.open_length

    @property
    def nbytes(self) -> int:
        """Bytes of the storages of all tensors held, each storage once."""
        storages = (t.untyped_storage() for layer in self.layers for t in layer.tensors())
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    def open_start(self) -> int:
        """Index of the first raw entry of the open segment."""
        return self.lengths.prefix + self.lengths.memory

    def mark_prefix(self) -> None:
        """Everything stored so far is the prefix."""
        self.lengths = Lengths(prefix=self.stored, closed=self.stored)

    def drop_newest(self, count: int) -> None:
        """Take back the newest `count` raw entries, as if they had never been fed."""
        assert 0 <= count <= self.open_length
        if count:
            for layer in self.layers:  # what is appended next goes into a new buffer
                layer.keys, layer.values = layer.keys[:, :, :-count], layer.values[:, :, :-count]

    def memory(self) -> list[Memory]:
        """The memory entries of every layer."""
        span = slice(self.lengths.prefix, self.open_start())
        return [
            Memory(layer.keys[:, :, span], layer.values[:, :, span], layer.positions, layer.scores)
            for layer in self.layers
        ]

    def replace_memory(self, memory: Sequence[Memory], lengths: Lengths, drop_open: bool) -> None:
        """Put new memory behind the prefix and, if `drop_open`, free the open segment's raw entries."""
        start, prefix = self.open_start(), self.lengths.prefix
        stored = []
        for layer, new in zip(self.layers, memory, strict=True):
            first = layer.stored if drop_open else start
            keys, values = (
                torch.cat((old[:, :, :prefix], fresh, old[:, :, first:]), dim=2)
                for old, fresh in ((layer.keys, new.keys), (layer.values, new.values))
            )
            stored.append((keys, values, new.positions, new.scores))
        for layer, tensors in zip(self.layers, stored, strict=True):
            layer.fill(*tensors)
        self.lengths = lengths
        self.count_removed()

    def count_removed(self) -> None:
        """Tell the layers how many raw tokens are gone (original positions: they still count)."""
        removed = 0 if self.compact else self.logical_length - self.stored
        for layer in self.layers:
            layer.removed = removed

    def fork(self) -> "SessionCache":
        """A cache that goes on by itself; tensors are shared until one of the two changes."""
        other = SessionCache(len(self.layers), compact=self.compact)
        other.restore(self)
        return other

    def restore(self, other: "SessionCache") -> None:
        """Become what `other` is."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.__dict__.update(theirs.__dict__)
        self.lengths = replace(other.lengths)


class _ReadLayer(DynamicLayer):
    """Shows a layer's entries to new rows, which do not see each other, and keeps the rows' own apart."""

    def __init__(self, source: SessionLayer) -> None:
        super().__init__()
        self._source = source

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return self._source.keys, self._source.values

    def get_seq_length(self, *_: object) -> int:
        return self._source.stored


class ReadCache(Cache):
    """A view of a session cache for rows that read it without joining it.

    After the forward `layers[i].keys` and `.values` hold the rows' own (1, G, N, D).
    """

    def __init__(self, source: SessionCache) -> None:
        super().__init__(layers=[_ReadLayer(layer) for layer in source.layers])
