"""Closing a segment: score, choose, re-encode, keep each head's share, free the raw entries."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from sonic_kv.budget import target_entries
from sonic_kv.cache import Lengths, Memory, SessionCache
from sonic_kv.config import Budget, SessionConfig
from sonic_kv.errors import ModelError
from sonic_kv.importance import Importance, LearnedImportance, WindowImportance
from sonic_kv.model import SonicModel
from sonic_kv.quantize import vector_bytes
from sonic_kv.reread import Reread
from sonic_kv.selection import Selection, candidates, in_elastic_order

# Every segment keeps an entry while there are not more than this; then the oldest count as one.
MIN_GROUPS, ENTRIES_PER_GROUP = 16, 4
MOST_ROWS = 256  # re-encoded in one model run: they do not see each other


class Compressor:
    """Keeps a session cache within a budget.

    Args:
        model: base and adapter.
        config: how segments are kept.
        importance: which entries matter; None: the adapter's scorer, or recent queries without one.
    """

    def __init__(
        self, model: SonicModel, config: SessionConfig, importance: Importance | None = None
    ) -> None:
        self.model, self.config = model, config
        adapter = model.adapter
        self.learned_form = adapter is not None and adapter.config.form == "learned"
        self.reencode = config.reencode and adapter is not None and adapter.reencodes
        if self.learned_form and not config.reencode:
            raise ModelError("the adapter's Nexus tokens are learned: reencode cannot be off")
        if importance is None:
            importance = (
                WindowImportance(model, config.window)
                if adapter is None
                else LearnedImportance(model, adapter)
            )
        self.importance = importance
        by_segment = self.learned_form or config.allocation == "segment"
        self.selection = Selection(self.importance.recency, by_segment)

    def close(self, cache: SessionCache, token_ids: Sequence[int], budget: Budget) -> None:
        """Replace the open segment by its Nexus tokens, and let older segments make room.

        The cache changes at the very end and at once: if anything fails it is as it was.

        Args:
            token_ids: of the open segment; their number is `cache.open_length`.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        self.close_all([(cache, token_ids)], budget)

    def close_all(self, open_segments: Sequence[tuple[SessionCache, Sequence[int]]], budget: Budget) -> None:
        """`close` several caches; what is re-encoded of them is in one model run. If it fails, each cache is as it
        was or closed."""
        going = [self.steps(cache, token_ids, budget) for cache, token_ids in open_segments]
        while wanted := {steps: request for steps in going for request in islice(steps, 1)}:
            self.model.reread(list(wanted.values()))
            going = list(wanted)

    def closing(
        self, cache: SessionCache, token_ids: Sequence[int], budget: Budget
    ) -> Generator[None, None, None]:
        """`close` that pauses between its steps, of which each takes a while; left there, it is called off."""
        yield
        for request in self.steps(cache, token_ids, budget):
            yield
            self.model.reread([request])
            yield

    def steps(
        self, cache: SessionCache, token_ids: Sequence[int], budget: Budget
    ) -> Generator[Reread, None, None]:
        """`close`, but the caller has the model read again what it yields: of several caches at once, say."""
        length = len(token_ids)
        assert length == cache.open_length > 0
        old = cache.lengths
        lengths = Lengths(
            prefix=old.prefix,
            memory=old.memory + length,
            segment_starts=(*old.segment_starts, old.closed),
            closed=old.closed + length,
            merged=old.merged,
            rebased=old.rebased,
        )
        total = self._target(lengths, budget)
        if total is not None:
            lengths = lengths.merge_oldest(max(MIN_GROUPS, total // ENTRIES_PER_GROUP))
        request = self.importance.reading(cache, token_ids)
        if request is not None:
            yield request
        scores = self.importance.scores(cache, request)
        everything = [self._with_open(cache, layer, scores[layer]) for layer in range(self.model.num_layers)]
        if total is None or total >= lengths.memory:
            cache.replace_memory(everything, lengths, drop_open=True)
            self._rebase(cache)
            return
        if self.learned_form:
            everything = [replace(e, scores=in_elastic_order(e.scores, old.memory)) for e in everything]
        kept, share = self._select(everything, lengths, total)
        if self.reencode:
            if self.learned_form:
                rows = torch.arange(length - share, length, device=self.model.device)
            else:
                rows = candidates(everything, kept, old.memory, self.config.candidates)
            for part in rows.split(MOST_ROWS):
                request = Reread(cache, token_ids, part, encode=True, segment=lengths.segments)
                yield request
                everything = _replace_rows(everything, old.memory + part, request)
        self._store(cache, everything, kept, lengths, drop_open=True)
        self._rebase(cache)

    def shrink(self, cache: SessionCache, budget: Budget) -> None:
        """Lower the memory to `budget` by dropping the least important entries; the model is not run.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        total = self._target(cache.lengths, budget)
        if total is not None and total < cache.lengths.memory:
            memory = cache.memory()
            kept, _ = self._select(memory, cache.lengths, total)
            self._store(cache, memory, kept, cache.lengths, drop_open=False)

    def bytes_per_entry(self) -> int:
        """Bytes of one memory entry over all layers and KV heads, bookkeeping included."""
        vectors, bits = self.model.bytes_per_token, self.config.bits
        if bits is not None:
            vectors = 2 * self._heads * vector_bytes(self.model.head_dim, bits)
        return vectors + 8 * self._heads

    @property
    def _heads(self) -> int:
        return self.model.num_layers * self.model.num_heads

    def _target(self, lengths: Lengths, budget: Budget) -> int | None:
        other, entry = 0, self.bytes_per_entry()
        if self.config.bits is not None:  # the prefix is not packed; key channels have a factor each
            other = lengths.prefix * (self.model.bytes_per_token - entry)
            other += self._heads * self.model.head_dim * self.model.dtype.itemsize
        return target_entries(
            budget,
            history=lengths.closed - lengths.prefix,
            segments=len(lengths.segment_starts),
            prefix=lengths.prefix,
            bytes_per_entry=entry,
            other_bytes=other,
        )

    def _with_open(self, cache: SessionCache, layer: int, scores: Tensor) -> Memory:
        """Memory and open segment of a layer, as candidates for keeping."""
        store, start = cache.layers[layer], cache.lengths.prefix
        fresh = torch.arange(
            cache.lengths.closed, cache.logical_length, dtype=torch.int32, device=self.model.device
        )
        fresh = fresh.expand(1, self.model.num_heads, -1)
        positions = torch.cat((store.positions, fresh), dim=-1)
        return Memory(store.keys[:, :, start:], store.values[:, :, start:], positions, scores)

    def _select(self, entries: list[Memory], lengths: Lengths, total: int) -> tuple[list[Tensor], int]:
        """Kept entries of each layer and head (G, total), and the newest segment's share of them (0: each
        head's own)."""
        counts = self.selection.counts(entries, lengths.segment_starts, lengths.closed, total)
        kept = self.selection.keep(entries, lengths.segment_starts, lengths.closed, total, counts)
        return kept, counts[-1] if counts else 0

    def _store(
        self,
        cache: SessionCache,
        entries: list[Memory],
        selected: list[Tensor],
        lengths: Lengths,
        drop_open: bool,
    ) -> None:
        """Put each head's selection into the cache; in compact mode at consecutive positions."""
        kept = [_gather(entry, index) for entry, index in zip(entries, selected, strict=True)]
        total = selected[0].shape[-1]
        if cache.compact:
            kept = [
                self._move(cache, layer, entry, kept[layer], selected[layer])
                for layer, entry in enumerate(entries)
            ]
        cache.replace_memory(kept, replace(lengths, memory=total), drop_open)
        if cache.compact and not drop_open:
            shift = torch.tensor(total - lengths.memory)
            for number, layer in enumerate(cache.layers):
                start = cache.open_start()
                tail = self.model.rope.rotate(number, layer.keys[:, :, start:], shift)
                keys = torch.cat((layer.keys[:, :, :start], tail), dim=2)
                layer.fill(keys, layer.values, layer.positions, layer.scores)

    def _rebase(self, cache: SessionCache) -> None:
        """Before the model's positions run out, move the memory's keys back, all by one distance.

        So distances stay what they are; what would pass the prefix stops behind it, as far away as the
        model can see. Compact positions never run out, and a sliding window would lose sight of the keys.
        """
        lengths, limit = cache.lengths, self.model.max_length
        high = limit - max(limit // 4, min(limit // 2, 2 * self.config.max_segment_tokens))
        spare = cache.next_position <= high or lengths.prefix >= high
        if spare or cache.compact or not self.model.can_rebase:
            return
        rebased = cache.logical_length - (lengths.prefix + (high - lengths.prefix) * 2 // 3)
        moved = []
        for number, entry in enumerate(cache.memory()):
            here, there = (
                (entry.positions - offset).clamp_min(lengths.prefix) for offset in (lengths.rebased, rebased)
            )
            moved.append(replace(entry, keys=self.model.rope.rotate(number, entry.keys, there - here)))
        cache.replace_memory(moved, replace(lengths, rebased=rebased), drop_open=False)

    def _move(self, cache: SessionCache, layer: int, entry: Memory, kept: Memory, index: Tensor) -> Memory:
        """Rotate kept keys from where they were encoded to consecutive positions behind the prefix."""
        old, start = cache.lengths.memory, cache.lengths.prefix
        memory = torch.arange(start, start + old, device=index.device).expand_as(entry.positions[..., :old])
        fresh = cache.open_start() + entry.positions[..., old:] - cache.lengths.closed
        encoded_at = torch.cat((memory, fresh), dim=-1).gather(-1, index[None])
        here = torch.arange(start, start + index.shape[-1], device=index.device)
        return replace(kept, keys=self.model.rope.rotate(layer, kept.keys, here - encoded_at))


def _gather(entry: Memory, index: Tensor) -> Memory:
    """The entries at `index`, per head. (G, n)"""

    def rows(vectors: Tensor) -> Tensor:  # whole vectors are copied; `gather` goes number by number
        return torch.stack([head.index_select(0, at) for head, at in zip(vectors[0], index, strict=True)])[
            None
        ]

    keys, values = rows(entry.keys), rows(entry.values)
    return Memory(keys, values, entry.positions.gather(-1, index[None]), entry.scores.gather(-1, index[None]))


def _replace_rows(entries: list[Memory], rows: Tensor, encoded: Reread) -> list[Memory]:
    """The entries with those at `rows` (N,) re-encoded."""
    result = []
    for entry, pair in zip(entries, encoded.entries, strict=True):
        keys, values = (
            old.index_copy(2, rows, new) for old, new in zip((entry.keys, entry.values), pair, strict=True)
        )
        result.append(replace(entry, keys=keys, values=values))
    return result
