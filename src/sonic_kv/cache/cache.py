"""The session cache: prefix, memory (one share per layer and KV head), raw open segment.

It is a transformers `Cache`. With original positions its sequence length is the transcript's, so that
`generate(transcript, cache=cache)` (`past_key_values` before transformers 5.24) feeds exactly the new tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from sonic_kv.cache.layers import Memory, SessionLayer


@dataclass(frozen=True)
class Lengths:
    """How many entries of each kind a KV head holds; what follows them is the open segment."""

    prefix: int = 0
    memory: int = 0  # mean over layers and KV heads
    segment_starts: tuple[int, ...] = ()  # transcript positions of the closed segments
    closed: int = 0  # transcript position at which the open segment starts
    merged: int = 0  # closed segments that have no start of their own any more: part of the first
    rebased: int = 0  # original positions: how far RoPE positions are behind those of the transcript

    @property
    def segments(self) -> int:
        """Segments that have been closed."""
        return len(self.segment_starts) + self.merged

    @property
    def history(self) -> int:
        """Tokens of the closed segments."""
        return self.closed - self.prefix

    def closing(self, open_length: int) -> "Lengths":
        """The lengths once an open segment of so many tokens is closed and nothing is dropped."""
        return replace(
            self,
            memory=self.memory + open_length,
            segment_starts=(*self.segment_starts, self.closed),
            closed=self.closed + open_length,
        )

    def merge_oldest(self, most: int) -> "Lengths":
        """At most `most` segments: the oldest ones become one."""
        surplus = max(len(self.segment_starts) - most, 0)
        if not surplus:
            return self
        starts = (self.segment_starts[0], *self.segment_starts[surplus + 1 :])
        return replace(self, segment_starts=starts, merged=self.merged + surplus)


class SessionCache(Cache):
    """The compressed KV cache of one dialogue (batch size 1).

    Forwards append to it and `drop_newest` takes back; what is kept of the past changes by `keep` alone.

    Args:
        compact: kept keys stand at consecutive positions.
        bits: of a number in the memory while it rests; None: as the model computes.
        windows: of the layers, None where a layer sees everything; empty: all do.

    Attributes:
        dropped: what every head has dropped, as one entry: its score, -inf if there is none, and its position in the
            transcript; None: nobody has counted. (2, compressed layers, G) float32
    """

    layers: list[SessionLayer]

    def __init__(
        self,
        num_layers: int,
        *,
        compact: bool = False,
        bits: int | None = None,
        windows: Sequence[int | None] = (),
    ) -> None:
        super().__init__(layers=[SessionLayer(window) for window in windows or [None] * num_layers])
        self.compact, self.bits = compact, bits
        self._lengths = Lengths()
        self.dropped: Tensor | None = None

    @property
    def lengths(self) -> Lengths:
        """How what is held divides into prefix, memory and open segment."""
        return self._lengths

    @property
    def window(self) -> int | None:
        """How many of its newest tokens a token sees in layers that do not see all; None: there are none."""
        return next((layer.window for layer in self.layers if layer.window is not None), None)

    @property
    def kept_layers(self) -> list[SessionLayer]:
        """The layers whose memory is what was chosen: those without a window, or if there are none, all."""
        return [layer for layer in self.layers if layer.window is None] or self.layers

    @property
    def raw(self) -> int:
        """Entries of prefix and open segment, as many in every KV head."""
        return self.layers[0].raw

    @property
    def stored(self) -> int:
        """Entries of a KV head, in the mean: prefix, memory and open segment."""
        return self.raw + self.lengths.memory

    @property
    def longest(self) -> int:
        """Entries of the KV head that has most."""
        return max(layer.longest for layer in self.layers)

    @property
    def even(self) -> bool:
        """Whether all KV heads of all layers hold as many entries."""
        return len({n for layer in self.layers for n in layer.counts}) <= 1

    @property
    def open_length(self) -> int:
        """Raw tokens of the open segment."""
        return self.raw - self.lengths.prefix

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

    @property
    def memory_tensor(self) -> Tensor:
        """A tensor of the memory: the same one as long as the memory is the same, in forks too."""
        return self.layers[0].memory_positions

    def shares(self) -> Tensor:
        """Which share of the compressed layers' KV heads still holds each token. (T,) float32, on the CPU"""
        shares = torch.ones(self.logical_length)
        if self.lengths.history:
            held = torch.cat([layer.memory_positions.cpu().long() for layer in self.kept_layers])
            heads = sum(len(layer.counts) for layer in self.kept_layers)
            past = slice(self.lengths.prefix, self.lengths.closed)
            shares[past] = torch.bincount(held, minlength=self.lengths.closed)[past] / heads
        return shares

    def mark_prefix(self) -> None:
        """Everything stored so far is the prefix."""
        self._count(Lengths(prefix=self.raw, closed=self.raw))

    def drop_newest(self, count: int) -> None:
        """Take back the newest `count` raw entries, as if they had never been fed."""
        assert 0 <= count <= self.open_length
        if count:
            for layer in self.layers:
                layer.drop_newest(count)

    def memory(self) -> list[Memory]:
        """The memory entries of every layer."""
        return [layer.memory(self.lengths.prefix) for layer in self.layers]

    def keep(
        self,
        memory: Sequence[Memory],
        lengths: Lengths,
        *,
        open_length: int = 0,
        moved: Sequence[Tensor] | None = None,
        dropped: Tensor | None = None,
    ) -> None:
        """Hold the prefix, `memory` behind it, and the newest entries; all others are freed.

        The cache changes at the very end and at once: if anything fails it is as it was.

        Args:
            memory: of every layer.
            lengths: how the entries count from now on; the number in the memory is counted here.
            open_length: how many of the newest raw entries stay: the open segment.
            moved: their keys in every layer, if they are to stand at other positions. Each (1, G, open_length, D)
            dropped: what heads have dropped, these entries too; None: nobody has counted.
        """
        assert lengths.prefix + open_length <= self.raw
        new = self.fork()
        for number, (layer, entries) in enumerate(zip(new.layers, memory, strict=True)):
            layer.unpack()
            kept = (
                entries
                if self.bits is None or layer.window is not None
                else layer.rounded(entries, self.bits)
            )
            layer.put_memory(kept, lengths.prefix, open_length, None if moved is None else moved[number])
        counts = [n for layer in new.kept_layers for n in layer.counts]
        new._count(replace(lengths, memory=round(sum(counts) / len(counts))))
        new.dropped = dropped
        self.restore(new)

    def _count(self, lengths: Lengths) -> None:
        """Take `lengths` over; layers learn for how many tokens their memory counts: with original positions, for all
        that it was made of."""
        self._lengths = lengths
        widest = max((n for layer in self.layers for n in layer.counts), default=0)
        for layer in self.layers:
            layer.widest = widest
            layer.passed = lengths.memory if self.compact else lengths.history

    def pack(self) -> None:
        """Let the memory rest in few bits, if it is to; what appends or attends to it next unpacks it."""
        if self.bits is not None:
            for layer in self.kept_layers:
                layer.pack(self.lengths.prefix, self.bits)

    def unpack(self) -> None:
        """Hold the memory as it is computed."""
        for layer in self.layers:
            layer.unpack()

    def fit(self) -> None:
        """Let go of memory that is free for more entries: this cache rests for a while."""
        for layer in self.layers:
            layer.fit()

    def fork(self, **changes: Any) -> "SessionCache":
        """A cache that goes on by itself; tensors are shared until one of the two changes.

        Args:
            changes: `bits`, if its memory is to rest in others.
        """
        options = {"compact": self.compact, "bits": self.bits, **changes}
        other = SessionCache(len(self.layers), **options)
        other.restore(self)
        return other

    def restore(self, other: "SessionCache") -> None:
        """Become what `other` is."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.__dict__.update(theirs.__dict__)
        self._lengths, self.dropped = other.lengths, other.dropped

    @property
    def slides(self) -> bool:
        """Whether layers with a window hold all that it reaches; a cache of an older version does not."""
        end, windows = self.lengths.closed, [layer for layer in self.layers if layer.window is not None]
        return all(
            torch.equal(at.cpu(), torch.arange(end - len(at), end, dtype=torch.int32))
            for layer in windows
            if layer.is_initialized
            for at in layer.memory_positions.split(layer.counts)
        )

    def lend(self, other: Cache) -> None:
        """Let another cache of transformers hold the layers of this one."""
        other.layers = self.layers

    # --- files --------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every tensor by layer and name: `from_state` takes them."""
        state = {
            f"{number}.{name}": tensor
            for number, layer in enumerate(self.layers)
            for name, tensor in layer.state().items()
        }
        return state if self.dropped is None else {**state, "dropped": self.dropped}

    @classmethod
    def from_state(
        cls,
        num_layers: int,
        state: Mapping[str, Tensor],
        lengths: Lengths,
        *,
        compact: bool,
        bits: int | None,
        windows: Sequence[int | None] = (),
    ) -> "SessionCache":
        """The cache that `state` was taken of.

        Raises:
            KeyError: a tensor is missing.
        """
        cache = cls(num_layers, compact=compact, bits=bits, windows=windows)
        if state:  # else nothing has been stored yet
            for number, layer in enumerate(cache.layers):
                own = {
                    name.partition(".")[2]: t for name, t in state.items() if name.startswith(f"{number}.")
                }
                layer.load_state(own, lengths.prefix, bits)
        cache._count(lengths)
        cache.dropped = state.get("dropped")
        return cache
