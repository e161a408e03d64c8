"""The session cache: prefix, memory (one share per layer and KV head), raw open segment.

It is a transformers `Cache`. With original positions its sequence length is the transcript's, so that
`generate(transcript, cache=cache)` (`past_key_values` before transformers 5.24) feeds exactly the new tokens, as
long as all heads hold as many entries.
"""

from collections.abc import Sequence
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

    def mark_prefix(self) -> None:
        """Everything stored so far is the prefix."""
        self.lengths = Lengths(prefix=self.raw, closed=self.raw)

    def drop_newest(self, count: int) -> None:
        """Take back the newest `count` raw entries, as if they had never been fed."""
        assert 0 <= count <= self.open_length
        if count:
            for layer in self.layers:
                layer.drop_newest(count)

    def memory(self) -> list[Memory]:
        """The memory entries of every layer."""
        return [layer.memory(self.lengths.prefix) for layer in self.layers]

    def replace_memory(self, memory: Sequence[Memory], lengths: Lengths, drop_open: bool) -> None:
        """Put new memory behind the prefix and, if `drop_open`, free the open segment's raw entries."""
        new, newest = self.fork(), 0 if drop_open else self.open_length
        for layer, entries in zip(new.layers, memory, strict=True):
            kept = entries if self.bits is None else layer.rounded(entries, self.bits)
            layer.put_memory(kept, self.lengths.prefix, newest)
        new.lengths = lengths
        new.count_passed()
        self.restore(new)

    def count_passed(self) -> None:
        """Tell the layers for how much their memory counts: what it was made of, with original positions."""
        passed = self.lengths.memory if self.compact else self.lengths.closed - self.lengths.prefix
        for layer in self.layers:
            layer.passed = passed

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


class Held:
    """The attention of a forward over a cache whose heads hold different numbers of entries.

    Args:
        count: the forward's tokens, which each layer takes in before its attention is asked for.
    """

    def __init__(self, cache: SessionCache, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self._cache = cache
        self._mask: Tensor | None = None
        if count > 1:  # as SDPA adds it, made once instead of in every layer
            mask = torch.full((count, cache.longest + count), -torch.inf, dtype=dtype, device=device)
            self._mask = mask.triu(cache.longest + 1)[None, None]

    def attend(
        self, module: Any, query: Tensor, _key: Tensor, _value: Tensor, _mask: Tensor, **options: Any
    ) -> Tensor:
        return self.read(module.layer_idx, query, **options)

    def read(self, layer: int, query: Tensor, **options: Any) -> Tensor:
        """What the tokens read of a layer. (1, H, T, D) → (1, H, T, D)"""
        return self._cache.layers[layer].read(query, self._mask, **options)
