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

from sonic_kv import quantize

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
        start, (keys, values) = self.stored, self.extend(key_states.shape[-2])
        keys[:, :, start : self.stored] = key_states
        values[:, :, start : self.stored] = value_states
        return self.keys, self.values

    def extend(self, count: int) -> tuple[Tensor, Tensor]:
        """Count `count` more entries, which the caller writes at once: they are the last of the first
        `stored` columns of the buffers that are returned. Both (B, G, capacity, D)"""
        start = self.stored
        end, buffer = start + count, self._buffer
        # one column stays free: a compiled step would take a full buffer for another case, and compile again
        if buffer is None or not self._at_end_of(buffer) or end >= buffer.keys.shape[2]:
            capacity = end + max(SPARE_ENTRIES, end // SPARE_SHARE)
            buffer = self._buffer = _Buffer(
                _with_room(self.keys, capacity), _with_room(self.values, capacity), start
            )
        buffer.used = end
        self.keys, self.values = buffer.keys[:, :, :end], buffer.values[:, :, :end]
        return buffer.keys, buffer.values

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
        channels: factors of packed keys; None until there is memory to pack. (1, G, 1, D)
    """

    def __init__(self) -> None:
        self._packed: _PackedMemory | None = None
        super().__init__()
        self.removed = 0
        self.channels: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        shape = (1, key_states.shape[1], 0)
        self.positions = torch.empty(shape, dtype=torch.int32, device=key_states.device)
        self.scores = torch.empty(shape, device=key_states.device)

    @property
    def keys(self) -> Tensor:
        self.unpack()
        return self._keys

    @keys.setter
    def keys(self, keys: Tensor) -> None:
        self._keys = keys

    @property
    def values(self) -> Tensor:
        self.unpack()
        return self._values

    @values.setter
    def values(self, values: Tensor) -> None:
        self._values = values

    @property
    def stored(self) -> int:
        if self._packed is not None:
            return self._keys.shape[-2] + self.positions.shape[-1]
        return super().stored

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
        self._packed = self._buffer = None
        self.keys, self.values, self.positions, self.scores = keys, values, positions, scores
        self._buffer = None  # the one before is nobody's memory now

    def rounded(self, memory: "Memory", bits: int) -> "Memory":
        """What packing makes of `memory`; the first one decides the factors of the key channels."""
        if not memory.positions.shape[-1]:
            return memory
        if self.channels is None:
            self.channels = quantize.channel_factors(memory.keys)
        packed = _PackedMemory.of(memory.keys, memory.values, self.channels, bits, start=0)
        keys, values = packed.unpack(self.channels)
        return replace(memory, keys=keys, values=values)

    def pack(self, start: int, bits: int) -> None:
        """Keep the memory, which begins at entry `start`, packed until it is used again."""
        size = self.positions.shape[-1] if self.is_initialized else 0
        if self._packed is not None or not size:
            return
        assert self.channels is not None
        keys, values, stop = self._keys, self._values, start + size
        self._packed = _PackedMemory.of(
            keys[:, :, start:stop], values[:, :, start:stop], self.channels, bits, start
        )
        self._keys, self._values = (
            torch.cat((entries[:, :, :start], entries[:, :, stop:]), dim=2) for entries in (keys, values)
        )
        self._buffer = None

    def unpack(self) -> None:
        """Make the working copy that a forward reads."""
        packed, self._packed = self._packed, None
        if packed is None:
            return
        assert self.channels is not None
        start = packed.start
        self._keys, self._values = (
            torch.cat((rest[:, :, :start], memory, rest[:, :, start:]), dim=2)
            for rest, memory in zip((self._keys, self._values), packed.unpack(self.channels), strict=True)
        )

    def state(self) -> dict[str, Tensor]:
        """Every tensor held, by name; while the memory is packed, `keys` and `values` are those of the rest."""
        if not self.is_initialized:
            return {}
        held = {
            "keys": self._keys,
            "values": self._values,
            "positions": self.positions,
            "scores": self.scores,
        }
        if self.channels is not None:
            held["channels"] = self.channels
        if self._packed is not None:
            held |= {"key_codes": self._packed.keys.codes, "key_peaks": self._packed.keys.peak}
            held |= {"value_codes": self._packed.values.codes, "value_peaks": self._packed.values.peak}
        return held

    def load_state(self, state: dict[str, Tensor], start: int, bits: int | None) -> None:
        """Hold what `state` returned."""
        self.fill(*(state[name] for name in ("keys", "values", "positions", "scores")))
        self.channels = state.get("channels")
        if bits is not None and "key_codes" in state:
            keys, values = (
                quantize.Packed(state[f"{kind}_codes"], state[f"{kind}_peaks"], bits)
                for kind in ("key", "value")
            )
            self._packed = _PackedMemory(keys, values, start)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.state().values())


@dataclass(frozen=True)
class _PackedMemory:
    """A layer's memory while it rests; `start`: how many entries stand before it."""

    keys: quantize.Packed
    values: quantize.Packed
    start: int

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, channels: Tensor, bits: int, start: int) -> "_PackedMemory":
        return cls(quantize.pack(keys / channels, bits), quantize.pack(values, bits), start)

    def unpack(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        return quantize.unpack(self.keys, channels.dtype) * channels, quantize.unpack(
            self.values, channels.dtype
        )


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
    merged: int = 0  # closed segments that have no start of their own any more: part of the first
    rebased: int = 0  # original positions: how far RoPE positions are behind those of the transcript

    @property
    def segments(self) -> int:
        """Segments that have been closed."""
        return len(self.segment_starts) + self.merged

    def merge_oldest(self, most: int) -> "Lengths":
        """At most `most` segments: the oldest ones become one."""
        surplus = max(len(self.segment_starts) - most, 0)
        if not surplus:
            return self
        starts = (self.segment_starts[0], *self.segment_starts[surplus + 1 :])
        return replace(self, segment_starts=starts, merged=self.merged + surplus)


class SessionCache(Cache):
    """The compressed KV cache of one dialogue (batch size 1).

    Args:
        compact: kept keys stand at consecutive positions.
        bits: of a number in the memory while it rests; None: as the model computes.
    """

    layers: list[SessionLayer]

    def __init__(self, num_layers: int, *, compact: bool = False, bits: int | None = None) -> None:
        super().__init__(layers=[SessionLayer() for _ in range(num_layers)])
        self.compact, self.bits = compact, bits
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
        return self.stored if self.compact else self.logical_length - self.lengths.rebased

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
            if self.bits is not None:
                new = layer.rounded(new, self.bits)
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

    def pack(self) -> None:
        """Let the memory rest in few bits, if it is to; whatever uses it next unpacks it."""
        if self.bits is not None:
            for layer in self.layers:
                layer.pack(self.lengths.prefix, self.bits)

    def fork(self) -> "SessionCache":
        """A cache that goes on by itself; tensors are shared until one of the two changes."""
        other = SessionCache(len(self.layers), compact=self.compact, bits=self.bits)
        other.restore(self)
        return other

    def restore(self, other: "SessionCache") -> None:
        """Become what `other` is."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.__dict__.update(theirs.__dict__)
        self.lengths = replace(other.lengths)
