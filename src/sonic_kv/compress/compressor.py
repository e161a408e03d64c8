"""Closing a segment: score, choose, re-encode, keep each head's share, free the raw entries."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from sonic_kv.cache.bits import vector_bytes
from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.layers import Memory
from sonic_kv.compress.closing import MIN_GROUPS, Account, EntryBytes, Kept, allowed, close, shrink
from sonic_kv.compress.options import Budget, PolicyName, SessionConfig
from sonic_kv.compress.policies import Closing, Policy, policy_of
from sonic_kv.compress.refit import answering
from sonic_kv.compress.selection import candidates, in_elastic_order
from sonic_kv.errors import BudgetError, ConfigError, ModelError, UnsupportedModelError
from sonic_kv.model.model import SonicModel, check_model
from sonic_kv.model.reread import Asked, Reading, Repeat, Reread
from sonic_kv.options import expect

NO_NATS = (
    "max_damage needs an adapter whose scores are known in nats: sonic-kv train --adapter PATH --out FOLDER finds them "
    "out for one; or give a compression ratio"
)
MOST_ROWS = 256  # re-encoded in one model run: they do not see each other


class Compressor:
    """Keeps a session cache within a budget.

    Args:
        model: base and adapter.
        config: how segments are kept; None: as by default.
        policy: which entries matter, by name or an object; None: what the configuration names.

    Raises:
        ConfigError: an argument is of another type, or the policy needs an adapter.
    """

    def __init__(
        self,
        model: SonicModel,
        config: SessionConfig | None = None,
        policy: Policy | PolicyName | None = None,
    ) -> None:
        config = expect(SessionConfig() if config is None else config, SessionConfig, "config")
        if isinstance(policy, str):
            config, policy = replace(config, policy=policy), None
        self.model, self.config = check_model(model), config
        adapter = model.adapter
        self.learned_form = adapter is not None and adapter.config.form == "learned"
        self.reencode = config.reencode and adapter is not None and adapter.reencodes
        if self.learned_form and not config.reencode:
            raise ModelError("the adapter's Nexus tokens are learned: reencode cannot be off")
        self.refit = False if self.reencode or self.learned_form else config.refit
        self.policy = policy_of(policy or config.policy, model)
        self.scale = self.policy.scale(model)
        allocation = config.allocation
        if self.learned_form:
            allocation = "segment"
        elif allocation == "shared" and config.positions == "compact":
            allocation = "per_head"
        self.allocation = allocation
        if model.sliding_window is not None and (self.learned_form or config.positions == "compact"):
            raise UnsupportedModelError(
                f"the model has a sliding window of {model.sliding_window} tokens, which needs "
                "positions='original' and an adapter whose Nexus tokens are anchored"
            )
        other = self._channel_bytes() + self._window_bytes()
        self.sizes = EntryBytes(self.bytes_per_entry(), model.bytes_per_token, other)

    def new_cache(self) -> SessionCache:
        """An empty cache for a dialogue."""
        return self.model.new_cache(compact=self.config.positions == "compact", bits=self.config.bits)

    def close(self, cache: SessionCache, transcript: Sequence[int], budget: Budget) -> None:
        """Replace the open segment by its Nexus tokens, and let older segments make room.

        The cache changes at the very end and at once: if anything fails it is as it was.

        Args:
            transcript: all tokens that the cache was fed.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        self.close_all([(cache, transcript)], budget)

    def close_all(self, dialogues: Sequence[tuple[SessionCache, Sequence[int]]], budget: Budget) -> None:
        """`close` several caches; what is re-encoded of them is in one model run. If it fails, each cache is as it
        was or closed."""
        going = [self.steps(cache, transcript, budget) for cache, transcript in dialogues]
        while wanted := {steps: request for steps in going for request in islice(steps, 1)}:
            self.model.reread(list(wanted.values()))
            going = list(wanted)

    def steps(
        self, cache: SessionCache, transcript: Sequence[int], budget: Budget
    ) -> Generator[Reading, None, None]:
        """`close`, but the caller has the model read again what it yields: of several caches at once, say."""
        length, lengths = cache.open_length, cache.lengths.closing(cache.open_length)
        assert len(transcript) == cache.logical_length
        assert length > 0
        cache.unpack()
        self.check(budget, cache)
        target = allowed(lengths, budget, self.sizes)
        closing = Closing(self.model, cache, transcript, length, target)
        if not closing.layers:  # windows alone
            kept = Kept([], lengths.merge_oldest(MIN_GROUPS), [], whole=True)
            self._store(cache, closing, [], [], kept, [], None)
            self._rebase(cache)
            return
        request = self.policy.reading(closing)
        if request is not None:
            yield request
        closing = replace(closing, read=request)
        positions = [closing.positions(layer) for layer in closing.layers]
        scores = self._scores(closing, positions)
        if self.learned_form and target < lengths.memory:
            scores = [in_elastic_order(layer, cache.lengths.memory) for layer in scores]
        ranks = self._with_recency(closing, scores, positions, lengths.closed)
        account = self._account(closing, lengths.closed)
        kept = close(ranks, positions, lengths, budget, self.allocation, sizes=self.sizes, account=account)
        dropped = self._dropped(closing, account, ranks, positions, kept)
        asked: list[Asked] = []
        if self.refit is not False and not kept.whole:
            if self.refit and not isinstance(request, Repeat):
                request = closing.excerpts()
                yield request
            asked = request.asked if isinstance(request, Repeat) else []
        encoded: list[Reread] = []
        if self.reencode and not kept.whole:
            if self.learned_form:
                rows = torch.arange(length - kept.counts[-1], length, device=self.model.device)
            else:
                rows = candidates(
                    [mask[:, -length:] for mask in kept.masks],
                    [layer[:, -length:] for layer in scores],
                    self.config.candidates,
                )
            opened = transcript[len(transcript) - length :]
            for part in rows.split(MOST_ROWS):
                encoded.append(Reread(cache, opened, part, encode=True, segment=lengths.segments))
                yield encoded[-1]
        self._store(cache, closing, scores, positions, kept, encoded, dropped, asked)
        self._rebase(cache)

    def shrink(self, cache: SessionCache, budget: Budget) -> None:
        """Lower the memory to `budget` by dropping the least important entries; the model is not run.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        self.check(budget, cache)
        target, held = allowed(cache.lengths, budget, self.sizes), cache.lengths.memory
        if not held or not self.model.compressed_layers or (budget.max_damage is None and target == held):
            return
        closing, ranks, account = self._standing(cache, target)
        kept = self._shrunk(closing, ranks, budget, account)
        if kept is not None:
            scores = [closing.stored(layer) for layer in closing.layers]
            positions = [closing.positions(layer) for layer in closing.layers]
            dropped = self._dropped(closing, account, ranks, positions, kept)
            self._store(cache, closing, scores, positions, kept, None, dropped)

    def check(self, budget: Budget, cache: SessionCache | None = None) -> None:
        """Refuse a budget in nats where nats are not known.

        Raises:
            BudgetError: the policy's scores are not in nats, or nobody has counted what was dropped.
        """
        if budget.max_damage is None:
            return
        if self.scale is None:
            raise BudgetError(NO_NATS)
        if cache is not None and self._gone(cache) is None:
            raise BudgetError(
                "max_damage: this session was saved before damage was counted: give a compression_ratio"
            )

    def predicted_damage(self, cache: SessionCache, budget: Budget | None = None) -> float | None:
        """What all that was dropped is predicted to cost, in nats a later token; None: that is not known.

        Args:
            budget: what it would cost under this one; None: as it is.

        Raises:
            BudgetError: the budget cannot hold the prefix.
        """
        closing = Closing(self.model, cache, [], 0, cache.lengths.memory)
        account = self._account(closing, cache.lengths.closed)
        if account is None or budget is None or not cache.lengths.memory:
            return None if account is None else account.damage()
        closing, ranks, _ = self._standing(cache, cache.lengths.memory)
        kept = self._shrunk(closing, ranks, budget, account)
        return account.damage() if kept is None else account.damage(ranks, kept.masks)

    def _standing(self, cache: SessionCache, target: int) -> tuple[Closing, list[Tensor], Account | None]:
        """The memory as it stands, the open segment apart: its scores with recency, and what has been dropped."""
        closing, end = Closing(self.model, cache, [], 0, target), cache.lengths.closed
        stored = [closing.stored(layer) for layer in closing.layers]
        at = [closing.positions(layer) for layer in closing.layers]
        return closing, self._with_recency(closing, stored, at, end), self._account(closing, end)

    def _shrunk(
        self, closing: Closing, ranks: Sequence[Tensor], budget: Budget, account: Account | None
    ) -> Kept | None:
        positions = [closing.positions(layer) for layer in closing.layers]
        lengths = closing.cache.lengths
        return shrink(ranks, positions, lengths, budget, self.allocation, sizes=self.sizes, account=account)

    def bytes_per_entry(self) -> int:
        """Bytes of one memory entry over all layers and KV heads, bookkeeping included."""
        bits, vector = self.config.bits, self.model.head_dim * self.model.dtype.itemsize
        if bits is not None:
            vector = vector_bytes(self.model.head_dim, bits)
        return self._heads * (2 * vector + 8)

    @property
    def _heads(self) -> int:
        """KV heads of the layers that are compressed; where there are none, of all."""
        return (len(self.model.compressed_layers) or self.model.num_layers) * self.model.num_heads

    def _window_bytes(self) -> int:
        """The most bytes that layers with a sliding window keep of closed segments, beside compressed ones."""
        heads = self.model.num_layers * self.model.num_heads - self._heads
        entry = 2 * self.model.head_dim * self.model.dtype.itemsize + 8
        return heads * entry * ((self.model.sliding_window or 1) - 1)

    def _channel_bytes(self) -> int:
        """Bytes of the key channels' factors, if the memory is packed."""
        packed = self.config.bits is not None
        return packed * self._heads * self.model.head_dim * self.model.dtype.itemsize

    def _scores(self, closing: Closing, positions: Sequence[Tensor]) -> list[Tensor]:
        """The policy's scores, -inf where there is no entry. (G, n + L) each

        Raises:
            ConfigError: they have another shape, or are NaN.
        """
        found = self.policy.scores(closing)
        shapes = [tuple(layer.shape) for layer in found]
        wanted = [tuple(layer.shape) for layer in positions]
        if shapes != wanted:
            raise ConfigError(
                f"policy {self.policy.name!r} gave scores of the shapes {shapes}, and the layers have {wanted}"
            )
        scores = [
            layer.float().masked_fill(at < 0, -torch.inf) for layer, at in zip(found, positions, strict=True)
        ]
        if bool(torch.cat(scores, -1).isnan().any()):
            raise ConfigError(f"policy {self.policy.name!r} gave scores that are no numbers (NaN)")
        return scores

    def _with_recency(
        self, closing: Closing, scores: Sequence[Tensor], positions: Sequence[Tensor], end: int
    ) -> list[Tensor]:
        """Scores with what the distance to the history's end adds to them."""
        return [
            layer + self.policy.recency(closing, number, end - at)
            for number, layer, at in zip(closing.layers, scores, positions, strict=True)
        ]

    def _gone(self, cache: SessionCache) -> Tensor | None:
        """What every head has dropped (`SessionCache.dropped`); None: that is not known."""
        nothing_yet = cache.lengths.memory >= cache.lengths.history or not self.model.compressed_layers
        nothing_yet = nothing_yet and cache.dropped is None
        if not nothing_yet:
            return cache.dropped
        layers, heads = len(self.model.compressed_layers), self.model.num_heads
        nothing = torch.zeros(2, layers, heads, device=self.model.device)
        nothing[0] = -torch.inf
        return nothing

    def _account(self, closing: Closing, end: int) -> Account | None:
        """What has been dropped so far, as it counts when the history ends at `end`; None: it is not known."""
        gone = self._gone(closing.cache)
        if self.scale is None or gone is None or not closing.layers:
            return None
        scores, positions = gone
        both = zip(closing.layers, positions, strict=True)
        far = [self.policy.recency(closing, layer, end - at[:, None])[:, 0] for layer, at in both]
        return Account(self.scale, scores + torch.stack(far))

    def _dropped(
        self,
        closing: Closing,
        account: Account | None,
        ranks: Sequence[Tensor],
        positions: Sequence[Tensor],
        kept: Kept,
    ) -> Tensor | None:
        """What every head has dropped once only what is kept is left, as one entry: where it was on average, weighted
        by what it counts, and with the score that it needs there to count as much."""
        gone = self._gone(closing.cache)
        if account is None or gone is None or kept.whole:
            return None if account is None else gone
        found = []
        for number, (rank, at, mask) in enumerate(zip(ranks, positions, kept.masks, strict=True)):
            counts = torch.cat((account.dropped[number][:, None], rank.masked_fill(mask, -torch.inf)), -1)
            places = torch.cat((gone[1, number][:, None], at.float()), -1)
            total = (2.0 * counts).logsumexp(-1) / 2.0  # (G,)
            weights = (2.0 * (counts - total[:, None])).exp().nan_to_num(0.0)
            place = (weights * places).sum(-1)
            distance = kept.lengths.closed - place[:, None]
            far = self.policy.recency(closing, closing.layers[number], distance)[:, 0]
            found.append(torch.stack((total - far, place)))
        return torch.stack(found, 1)

    def _store(
        self,
        cache: SessionCache,
        closing: Closing,
        scores: Sequence[Tensor],
        positions: Sequence[Tensor],
        kept: Kept,
        encoded: Sequence[Reread] | None,
        dropped: Tensor | None,
        asked: Sequence[Asked] = (),
    ) -> None:
        """Put each head's selection into the cache; in compact mode at consecutive positions.

        Layers with a sliding window keep what it still reaches.

        Args:
            scores, positions: the memory's, and the open segment's if that is closed.
            encoded: what of the open segment was re-encoded; None: it stays open.
            dropped: as `SessionCache.dropped`.
            asked: of every layer, queries for which kept values answer for dropped ones; none: values stay.
        """
        lengths = kept.lengths
        chosen = {
            layer: _gather(cache, layer, *of, encoded=encoded)
            for layer, *of in zip(closing.layers, scores, positions, kept.masks, strict=True)
        }
        prefix, end = lengths.prefix, cache.logical_length
        selected = [
            chosen.get(number) or (layer.memory(prefix) if encoded is None else layer.slid(prefix, end))
            for number, layer in enumerate(cache.layers)
        ]
        if cache.compact:
            selected = [self._move(layer, memory, kept.masks[layer]) for layer, memory in enumerate(selected)]
        if asked:
            nearer = cache.lengths.memory + cache.open_length - lengths.memory if cache.compact else 0
            selected = [
                answering(cache, layer, memory, asked[layer], self.model.rope, nearer)
                if layer in chosen
                else memory
                for layer, memory in enumerate(selected)
            ]
        length = cache.open_length if encoded is None else 0
        moved = None
        if cache.compact and length:
            shift = torch.tensor(lengths.memory - cache.lengths.memory)
            moved = [
                self.model.rope.rotate(number, layer.newest(length)[0], shift)
                for number, layer in enumerate(cache.layers)
            ]
        cache.keep(selected, lengths, open_length=length, moved=moved, dropped=dropped)

    def _rebase(self, cache: SessionCache) -> None:
        """Before the model's positions run out, move the memory's keys back, all by one distance.

        So distances stay what they are; what would pass the prefix stops behind it, as far away as the
        model can see. Compact positions never run out.
        """
        lengths, limit = cache.lengths, self.model.max_length
        high = limit - max(limit // 4, min(limit // 2, 2 * self.config.max_segment_tokens))
        spare = cache.next_position <= high or lengths.prefix >= high
        if spare or cache.compact:
            return
        rebased = cache.logical_length - (lengths.prefix + (high - lengths.prefix) * 2 // 3)
        moved = []
        for number, memory in enumerate(cache.memory()):
            shifts = [
                (at - rebased).clamp_min(lengths.prefix) - (at - lengths.rebased).clamp_min(lengths.prefix)
                for at in memory.positions
            ]
            keys = [
                self.model.rope.rotate(number, head, shift)
                for head, shift in zip(memory.keys, shifts, strict=True)
            ]
            moved.append(replace(memory, keys=keys))
        cache.keep(
            moved, replace(lengths, rebased=rebased), open_length=cache.open_length, dropped=cache.dropped
        )

    def _move(self, layer: int, memory: Memory, kept: Tensor) -> Memory:
        """Rotate kept keys from where they were encoded to consecutive positions behind the prefix."""
        keys = []
        for head, mask in zip(memory.keys, kept, strict=True):  # entries stood side by side, one a column
            encoded_at = mask.nonzero()[:, 0]
            here = torch.arange(len(head), device=head.device)
            keys.append(self.model.rope.rotate(layer, head, here - encoded_at))
        return replace(memory, keys=keys)


def _gather(
    cache: SessionCache,
    number: int,
    scores: Tensor,
    positions: Tensor,
    kept: Tensor,
    *,
    encoded: Sequence[Reread] | None,
) -> Memory:
    """The kept entries of each head of a layer; re-encoded ones instead of raw ones.

    Args:
        scores, positions, kept: of memory and open segment. (G, N)
    """
    layer, prefix = cache.layers[number], cache.lengths.prefix
    behind = kept.shape[-1] - (0 if encoded is None else cache.open_length)  # columns of the memory
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for head, (*pair, count) in enumerate(zip(*layer.heads(), layer.counts, strict=True)):
        mask = kept[head]
        old, fresh = mask[behind - count : behind].nonzero()[:, 0], mask[behind:].nonzero()[:, 0]
        for held, vectors, of in zip((keys, values), pair, (0, 1), strict=True):
            opened = vectors[prefix + count :]
            for request in encoded or ():
                opened = opened.index_copy(0, request.offsets, request.entries[number][of][0, head])
            memory = vectors[prefix : prefix + count]
            held.append(torch.cat((memory.index_select(0, old), opened.index_select(0, fresh))))
    at, worth = ([row[mask] for row, mask in zip(rows, kept, strict=True)] for rows in (positions, scores))
    return Memory(keys, values, at, worth)
