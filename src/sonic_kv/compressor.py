"""Closing a segment: score, choose, re-encode, keep each head's share, free the raw entries."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sonic_kv.budget import allocate, select_by_segment, select_global, target_entries
from sonic_kv.cache import Lengths, Memory, ReadCache, SessionCache
from sonic_kv.config import Budget, SessionConfig
from sonic_kv.errors import ModelError
from sonic_kv.importance import Importance, LearnedImportance, WindowImportance
from sonic_kv.model import SonicModel


class Compressor:
    """Keeps a session cache within a budget.

    Args:
        model: base and adapter.
        config: how segments are kept.
    """

    def __init__(self, model: SonicModel, config: SessionConfig) -> None:
        self.model, self.config = model, config
        adapter = model.adapter
        self.learned_form = adapter is not None and adapter.config.form == "learned"
        self.reencode = config.reencode and adapter is not None and adapter.reencodes
        if self.learned_form and not config.reencode:
            raise ModelError("the adapter's Nexus tokens are learned: reencode cannot be off")
        self.importance: Importance = (
            WindowImportance(model, config.window) if adapter is None else LearnedImportance(model, adapter)
        )

    def close(self, cache: SessionCache, token_ids: Sequence[int], budget: Budget) -> None:
        """Replace the open segment by its Nexus tokens, and let older segments make room.

        The cache changes at the very end and at once: if anything fails it is as it was.

        Args:
            token_ids: of the open segment; their number is `cache.open_length`.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        length = len(token_ids)
        assert length == cache.open_length > 0
        old = cache.lengths
        lengths = Lengths(
            prefix=old.prefix,
            memory=old.memory + length,
            segment_starts=(*old.segment_starts, old.closed),
            closed=old.closed + length,
        )
        total = self._target(cache, lengths, budget, open_length=0)
        scores = self.importance.scores(cache, token_ids)
        everything = [self._with_open(cache, layer, scores[layer]) for layer in range(self.model.num_layers)]
        if total is None or total >= lengths.memory:
            cache.replace_memory(everything, lengths, drop_open=True)
            return
        counts = self._counts(everything, lengths, total)
        if self.learned_form:
            everything = self._learned(cache, token_ids, everything, counts[-1])
        elif self.reencode:
            everything = self._reencode(cache, token_ids, everything, lengths, total, counts)
        self._keep(cache, everything, lengths, total, counts, drop_open=True)

    def shrink(self, cache: SessionCache, budget: Budget) -> None:
        """Lower the memory to `budget` by dropping the least important entries; the model is not run.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        total = self._target(cache, cache.lengths, budget, open_length=cache.open_length)
        if total is not None and total < cache.lengths.memory:
            memory = cache.memory()
            counts = self._counts(memory, cache.lengths, total)
            self._keep(cache, memory, cache.lengths, total, counts, drop_open=False)

    def bytes_per_entry(self, cache: SessionCache) -> int:
        """Bytes of one memory entry over all layers and KV heads, bookkeeping included."""
        itemsize = torch.empty(0, dtype=self.model.dtype).element_size()
        head_dim = cache.layers[0].keys.shape[-1]
        return self.model.num_layers * self.model.num_heads * (2 * head_dim * itemsize + 8)

    def _target(self, cache: SessionCache, lengths: Lengths, budget: Budget, open_length: int) -> int | None:
        return target_entries(
            budget,
            history=lengths.closed - lengths.prefix,
            segments=len(lengths.segment_starts),
            prefix=lengths.prefix,
            open_length=open_length,
            bytes_per_entry=self.bytes_per_entry(cache),
        )

    def _with_open(self, cache: SessionCache, layer: int, scores: Tensor) -> Memory:
        """Memory and open segment of a layer, as candidates for keeping."""
        store, start = cache.layers[layer], cache.lengths.prefix
        fresh = torch.arange(cache.lengths.closed, cache.logical_length, dtype=torch.int32, device=self.model.device)
        fresh = fresh.expand(1, self.model.num_heads, -1)
        positions = torch.cat((store.positions, fresh), dim=-1)
        return Memory(store.keys[:, :, start:], store.values[:, :, start:], positions, scores)

    def _reencode(
        self,
        cache: SessionCache,
        token_ids: Sequence[int],
        entries: list[Memory],
        lengths: Lengths,
        total: int,
        counts: list[int],
    ) -> list[Memory]:
        """Put the segment's candidates, encoded by the adapter, in place of its raw entries.

        Candidates are the tokens that most layers and heads would keep.
        """
        old, length = cache.lengths.memory, len(token_ids)
        votes = torch.zeros(length, device=self.model.device)
        most = 0
        for entry, kept in zip(entries, self._select(entries, lengths, total, counts), strict=True):
            votes += torch.bincount(kept[kept >= old] - old, minlength=length)
            votes += entry.scores[0, :, old:].sigmoid().mean(0) / self.model.num_layers  # decides ties
            most = max(most, int((kept >= old).sum(-1).max()))
        number = min(length, round(self.config.candidates * most))
        chosen = votes.topk(number).indices.sort().values
        encoded = self.model.reread(cache, token_ids, chosen, encode=True, segment=len(lengths.segment_starts))
        return self._insert(entries, encoded, old, old + chosen)

    def _learned(
        self, cache: SessionCache, token_ids: Sequence[int], entries: list[Memory], count: int
    ) -> list[Memory]:
        """Put `count` learned Nexus tokens, at the segment's end, in place of its raw entries."""
        old, length = cache.lengths.memory, len(token_ids)
        chosen = torch.arange(length - count, length, device=self.model.device)
        segment = len(cache.lengths.segment_starts) + 1
        encoded = self.model.reread(cache, token_ids, chosen, encode=True, segment=segment)
        # Elastic order: a segment's last Nexus token is dropped last, in every head alike.
        return [
            replace(entry, scores=torch.cat((entry.scores[..., :old], entry.scores[..., old:].sort().values), -1))
            for entry in self._insert(entries, encoded, old, old + chosen)
        ]

    @staticmethod
    def _insert(entries: list[Memory], encoded: ReadCache, old: int, rows: Tensor) -> list[Memory]:
        result = []
        for entry, layer in zip(entries, encoded.layers, strict=True):
            result.append(
                Memory(
                    torch.cat((entry.keys[:, :, :old], layer.keys), dim=2),
                    torch.cat((entry.values[:, :, :old], layer.values), dim=2),
                    torch.cat((entry.positions[..., :old], entry.positions[..., rows]), dim=-1),
                    torch.cat((entry.scores[..., :old], entry.scores[..., rows]), dim=-1),
                )
            )
        return result

    def _keep(
        self,
        cache: SessionCache,
        entries: list[Memory],
        lengths: Lengths,
        total: int,
        counts: list[int],
        drop_open: bool,
    ) -> None:
        """Store each head's selection; in compact mode at consecutive positions."""
        selected = self._select(entries, lengths, total, counts)
        kept = [_gather(entry, index) for entry, index in zip(entries, selected, strict=True)]
        if cache.compact:
            kept = [self._move(cache, layer, entry, kept[layer], selected[layer]) for layer, entry in enumerate(entries)]
        cache.replace_memory(kept, replace(lengths, memory=total), drop_open)
        if cache.compact and not drop_open:
            shift = torch.tensor(total - lengths.memory)
            for number, layer in enumerate(cache.layers):
                start = cache.open_start()
                tail = self.model.rope.rotate(number, layer.keys[:, :, start:], shift)
                layer.keys = torch.cat((layer.keys[:, :, :start], tail), dim=2)

    def _move(self, cache: SessionCache, layer: int, entry: Memory, kept: Memory, index: Tensor) -> Memory:
        """Rotate kept keys from where they were encoded to consecutive positions behind the prefix."""
        old, start = cache.lengths.memory, cache.lengths.prefix
        memory = torch.arange(start, start + old, device=index.device).expand_as(entry.positions[..., :old])
        fresh = cache.open_start() + entry.positions[..., old:] - cache.lengths.closed
        encoded_at = torch.cat((memory, fresh), dim=-1).gather(-1, index[None])
        here = torch.arange(start, start + index.shape[-1], device=index.device)
        return replace(kept, keys=self.model.rope.rotate(layer, kept.keys, here - encoded_at))

    def _ranked(self, layer: int, entry: Memory, lengths: Lengths) -> tuple[Tensor, Tensor]:
        """Scores with recency, and the segment number (from 0) of every entry. Both (G, N)"""
        positions = entry.positions[0].long()
        scores = entry.scores[0] + self.importance.recency(layer, lengths.closed - positions)
        starts = torch.tensor(lengths.segment_starts, device=positions.device)
        return scores, torch.bucketize(positions, starts, right=True) - 1

    def _counts(self, entries: list[Memory], lengths: Lengths, total: int) -> list[int]:
        """Entries of each segment if the budget is first shared among segments; else empty.

        A segment's weight is the attention it can expect: the softmax of the scores, summed over
        its entries (so: length × mean importance × recency), averaged over layers and heads.
        """
        if not (self.learned_form or self.config.allocation == "segment"):
            return []
        number = len(lengths.segment_starts)
        weights, held = torch.zeros(number), torch.zeros(number)
        for layer, entry in enumerate(entries):
            scores, segments = self._ranked(layer, entry, lengths)
            mass = scores.softmax(-1).mean(0).cpu()
            weights.index_add_(0, segments[0].cpu(), mass)
            held = torch.bincount(segments[0].cpu(), minlength=number)
        return allocate(weights.tolist(), [int(n) for n in held], total)

    def _select(self, entries: list[Memory], lengths: Lengths, total: int, counts: list[int]) -> list[Tensor]:
        """Kept entries of each layer, per head. Each (G, total)"""
        result = []
        for layer, entry in enumerate(entries):
            scores, segments = self._ranked(layer, entry, lengths)
            if counts:
                result.append(select_by_segment(scores, segments, counts))
            else:
                result.append(select_global(scores, segments, total))
        return result


def _gather(entry: Memory, index: Tensor) -> Memory:
    """The entries at `index`, per head. (G, n)"""
    index = index[None]
    wide = index[..., None].expand(-1, -1, -1, entry.keys.shape[-1])
    return Memory(
        entry.keys.gather(2, wide),
        entry.values.gather(2, wide),
        entry.positions.gather(-1, index),
        entry.scores.gather(-1, index),
    )
