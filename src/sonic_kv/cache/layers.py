"""A layer of the session cache: prefix, memory of which every KV head has its own amount, open segment."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sonic_kv.cache import bits as quantize
from sonic_kv.cache.attention import attend_noting, masked_attention
from sonic_kv.cache.growing import GrowingLayer, Sizes
from sonic_kv.cache.standin import StandIn
from sonic_kv.errors import ModelError

ONE_DIALOGUE = "a session's cache holds one dialogue: no batches, beams or several sequences"


@dataclass(frozen=True)
class Memory:
    """What one layer keeps of the closed segments, of every KV head in the order of the transcript."""

    keys: Sequence[Tensor]  # each (n, D)
    values: Sequence[Tensor]  # each (n, D)
    positions: Sequence[Tensor]  # transcript positions. Each (n,) int32
    scores: Sequence[Tensor]  # importance, comparable across segments. Each (n,) float32


class SessionLayer(GrowingLayer):
    """One layer of a session: prefix, memory, open segment.

    Attributes:
        counts: memory entries of each KV head.
        widest: most memory entries of any KV head, in all layers of the cache.
        passed: tokens for which the memory counts as length.
        memory_positions: transcript positions of the memory, head after head. (N,) int32
        channels: factors of packed keys; None until there is memory to pack. (1, G, 1, D)
        window: how many of the newest tokens a token sees, itself included; None: all. Such a layer is not compressed:
            its memory is what the window still reaches.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self._packed: _PackedMemory | None = None
        self.counts: Sizes = ()
        self.widest = 0
        self.passed = 0
        self.channels: Tensor | None = None
        super().__init__()

    @property
    def even(self) -> bool:
        """Whether all KV heads hold as many entries."""
        return len(set(self.counts)) <= 1

    def hold(self, keys: Tensor, values: Tensor, sizes: Sizes) -> None:
        """Hold these entries, (N, D) head after head, instead of any before; none of them is memory."""
        super().hold(keys, values, sizes)
        nothing = torch.empty(0, device=keys.device)
        self._remember((0,) * len(sizes), nothing.int(), nothing)

    def _remember(self, counts: Sizes, positions: Tensor, scores: Tensor) -> None:
        """How much of what is held is memory; its positions and scores, head after head. (N,)"""
        self._packed, self.counts = None, counts
        self.memory_positions, self._scores = positions, scores

    @property
    def raw(self) -> int:
        """Entries of prefix and open segment, as many in every head."""
        if not self.is_initialized:
            return 0
        return self.sizes[0] - (0 if self._packed is not None else self.counts[0])

    @property
    def longest(self) -> int:
        """Entries of the KV head that has most."""
        return self.raw + max(self.counts, default=0)

    @property
    def width(self) -> int:
        """Entries of the KV head that has most, in all layers of the cache."""
        return self.raw + self.widest

    @property
    def positions(self) -> Tensor:
        """Transcript positions of the memory; a head that has fewer begins with -1. (1, G, n) int32"""
        return self._table(self.memory_positions, -1)

    @property
    def scores(self) -> Tensor:
        """Importance of the memory; a head that has fewer begins with -inf. (1, G, n) float32"""
        return self._table(self._scores, -torch.inf)

    def _table(self, numbers: Tensor, absent: float) -> Tensor:
        return _padded(numbers.split(self.counts), absent)

    def padded(self, width: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads side by side, at least `width`; a head that has fewer begins with zeros.
        (1, G, S, D)"""
        missing = width - self.longest
        if self.even and missing <= 0:
            return self.keys, self.values
        keys, values = (_padded(held, 0.0) for held in self.heads())
        if missing <= 0:
            return keys, values
        return nn.functional.pad(keys, (0, 0, missing, 0)), nn.functional.pad(values, (0, 0, missing, 0))

    def present(self, seen: Tensor) -> Tensor:
        """What of `seen` there is in the columns of `padded`. (1, 1, N, S or more) → (1, 1 or G, N, S) bool"""
        seen = seen[..., -self.longest :]
        if self.even:
            return seen
        sizes = torch.tensor(self.sizes, device=seen.device)[:, None, None]
        return seen & (torch.arange(self.longest, 0, -1, device=seen.device) <= sizes)

    def newest(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the newest entries. (1, G, count, D)"""
        keys, values = self.heads()
        return (
            torch.stack([head[len(head) - count :] for head in keys])[None],
            torch.stack([head[len(head) - count :] for head in values])[None],
        )

    def memory(self, prefix: int) -> Memory:
        """The memory, which stands behind `prefix` entries."""
        spans = [slice(prefix, prefix + n) for n in self.counts]
        keys, values = self.heads()
        return Memory(
            [head[span] for head, span in zip(keys, spans, strict=True)],
            [head[span] for head, span in zip(values, spans, strict=True)],
            self.memory_positions.split(self.counts),
            self._scores.split(self.counts),
        )

    def slid(self, prefix: int, end: int) -> Memory:
        """What the window still reaches from position `end` on, of all that stands behind the prefix."""
        assert self.window is not None
        start = max(self.sizes[0] - (self.window - 1), prefix)
        keys, values = ([head[start:] for head in held] for held in self.heads())
        at = torch.arange(end - len(keys[0]), end, dtype=torch.int32, device=keys[0].device)
        scores = torch.zeros(len(at), device=at.device)
        return Memory(keys, values, [at] * len(keys), [scores] * len(keys))

    def put_memory(self, memory: Memory, prefix: int, newest: int, moved: Tensor | None = None) -> None:
        """Hold the first `prefix` entries, `memory`, and the newest ones, in storage of just that size.

        Args:
            moved: keys of the newest entries, if they are to stand elsewhere. (1, G, newest, D)
        """
        keys, values = self.heads()
        opened, others = ([head[len(head) - newest :] for head in held] for held in (keys, values))
        counts = tuple(len(head) for head in memory.positions)
        self.hold(
            _behind(keys, prefix, memory.keys, opened if moved is None else list(moved[0])),
            _behind(values, prefix, memory.values, others),
            tuple(prefix + n + newest for n in counts),
        )
        self._remember(counts, torch.cat(list(memory.positions)), torch.cat(list(memory.scores)))

    def get_seq_length(self, *_: object) -> int:
        return self.raw + self.passed

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        # transformers 5.2 passes the positions of the new tokens, later versions their number
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.width + new, self.get_seq_length() - self.width

    # --- for a model's own attention ------------------------------------------------------------

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append to every head; returns all entries, or what stands for them.

        Raises:
            ModelError: there are several dialogues.
        """
        if len(key_states) > 1:
            raise ModelError(ONE_DIALOGUE)
        self.append(key_states, value_states)
        if all(n == self.widest for n in self.counts):
            return self.keys, self.values
        return StandIn.of(self, 0, key_states), StandIn.of(self, 1, value_states)

    def crop(self, tokens: int) -> None:
        """Take back the newest entries: so many (negative), or, as transformers 5.2 has it, all but so many.

        Raises:
            ModelError: they are in the memory.
        """
        count = -tokens if tokens <= 0 else max(self.get_seq_length() - tokens, 0)
        if count > self.raw:
            raise ModelError("tokens of closed segments cannot be taken back from a session's cache")
        self.drop_newest(count)

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise ModelError(ONE_DIALOGUE)

    def batch_select_indices(self, indices: Tensor) -> None:
        raise ModelError(ONE_DIALOGUE)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise ModelError(ONE_DIALOGUE)

    # --- few bits -----------------------------------------------------------------------------

    def rounded(self, memory: Memory, bits: int) -> Memory:
        """What packing makes of `memory`; the first time, the raw entries decide the factors of the key channels."""
        if self.channels is None:
            self.channels = quantize.channel_factors(self.keys)
        counts = [len(head) for head in memory.positions]
        keys, values = self._pack(memory, bits, 0).unpack(self._factors(counts))
        return Memory(keys.split(counts), values.split(counts), memory.positions, memory.scores)

    def pack(self, prefix: int, bits: int) -> None:
        """Keep the memory, which stands behind `prefix` entries, packed until it is used again."""
        if self._packed is not None or not any(self.counts):
            return
        packed, raw = self._pack(self.memory(prefix), bits, prefix), self.raw
        keys, values = (
            _behind(held, prefix, [head[prefix + n :] for head, n in zip(held, self.counts, strict=True)])
            for held in self.heads()
        )
        super().hold(keys, values, (raw,) * len(self.counts))
        self._packed = packed

    def _pack(self, memory: Memory, bits: int, prefix: int) -> "_PackedMemory":
        keys = torch.cat(list(memory.keys)) / self._factors([len(head) for head in memory.keys])
        values = torch.cat(list(memory.values))
        return _PackedMemory(quantize.pack(keys, bits), quantize.pack(values, bits), prefix)

    def _factors(self, counts: Sequence[int]) -> Tensor:
        """The factors of each memory entry's head. (N, D)"""
        assert self.channels is not None
        heads = self.channels[0, :, 0]
        return heads.repeat_interleave(torch.tensor(counts, device=heads.device), 0)

    def readable(self) -> "SessionLayer":
        """This layer, or while its memory is packed one that holds the same unpacked."""
        if self._packed is None:
            return self
        other = copy(self)
        other.unpack()
        return other

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.unpack()
        super().append(keys, values)

    def read(self, query: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None) -> Tensor:
        self.unpack()
        if mask is None and self.window is not None:
            keys, values = self.keys[:, :, -self.window :], self.values[:, :, -self.window :]
            return masked_attention(query, keys, values, None, scale=scale, softcap=softcap)
        return super().read(query, mask, scale=scale, softcap=softcap)

    def read_noting(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """Attention of new tokens, which do not join, over what is held and one another; see `attend_noting`.

        Returns:
            (1, H, T, D), and the largest weights; a head that has fewer entries begins with zeros. (G, S)
        """
        self.unpack()
        options: dict[str, Any] = {"scale": scale, "softcap": softcap, "window": self.window}
        output, largest = attend_noting(query, *self.heads(), key, value, **options)
        return output, _padded(largest, 0.0)[0]

    def unpack(self) -> None:
        """Hold the memory as it is computed, if it is packed."""
        packed, self._packed = self._packed, None
        if packed is None:
            return
        counts = self.counts
        keys, values = packed.unpack(self._factors(counts))
        positions, scores = self.memory_positions.split(counts), self._scores.split(counts)
        memory = Memory(keys.split(counts), values.split(counts), positions, scores)
        self.put_memory(memory, packed.prefix, self.sizes[0] - packed.prefix)

    # --- files --------------------------------------------------------------------------------

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that takes memory."""
        if not self.is_initialized:
            return ()
        held = [*self._buffer.tensors(), self.memory_positions, self._scores]
        held += [] if self.channels is None else [self.channels]
        return (*held, *(() if self._packed is None else self._packed.tensors().values()))

    def state(self) -> dict[str, Tensor]:
        """Every tensor by name, without spare room; while the memory is packed, `keys` and `values` are the rest."""
        if not self.is_initialized:
            return {}
        keys, values = (torch.cat(held) for held in self._buffer.heads(self.sizes))
        state = {"keys": keys, "values": values, "positions": self.memory_positions, "scores": self._scores}
        state["counts"] = torch.tensor(self.counts)
        if self.channels is not None:
            state["channels"] = self.channels
        return state | ({} if self._packed is None else self._packed.tensors())

    def load_state(self, state: dict[str, Tensor], prefix: int, bits: int | None) -> None:
        """Hold what `state` returned."""
        keys, values, counts = state["keys"], state["values"], tuple(state["counts"].tolist())
        self.lazy_initialization(keys.new_empty(1, len(counts), 0, keys.shape[-1]), values[None, None])
        at_rest = bits is not None and "key_codes" in state
        raw = (len(keys) - (0 if at_rest else sum(counts))) // len(counts)
        self.hold(keys, values, tuple(raw + (0 if at_rest else n) for n in counts))
        self._remember(counts, state["positions"], state["scores"])
        self.channels = state.get("channels")
        if at_rest:
            assert bits is not None
            packed = [
                quantize.Packed(state[f"{kind}_codes"], state[f"{kind}_peaks"], bits)
                for kind in ("key", "value")
            ]
            self._packed = _PackedMemory(packed[0], packed[1], prefix)


def _behind(heads: Sequence[Tensor], prefix: int, *more: Sequence[Tensor]) -> Tensor:
    """Head after head, its first `prefix` entries and what of `more` is its own. Each (n, D) → (N, D)"""
    return torch.cat(
        [part for head, *parts in zip(heads, *more, strict=True) for part in (head[:prefix], *parts)]
    )


def _padded(heads: Sequence[Tensor], absent: float) -> Tensor:
    """The heads side by side, shorter ones filled up at their beginning. Each (n, …) → (1, G, longest, …)"""
    if len({len(head) for head in heads}) == 1:
        return torch.stack(list(heads))[None]
    return pad_sequence(list(heads), batch_first=True, padding_value=absent, padding_side="left")[None]


@dataclass(frozen=True)
class _PackedMemory:
    """A layer's memory while it rests, head after head; `prefix`: how many entries stand before it."""

    keys: quantize.Packed
    values: quantize.Packed
    prefix: int

    def unpack(self, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values. factors (N, D) → each (N, D)"""
        return quantize.unpack(self.keys, factors.dtype) * factors, quantize.unpack(
            self.values, factors.dtype
        )

    def tensors(self) -> dict[str, Tensor]:
        return {
            "key_codes": self.keys.codes,
            "key_peaks": self.keys.peak,
            "value_codes": self.values.codes,
            "value_peaks": self.values.peak,
        }
