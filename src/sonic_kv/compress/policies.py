"""Policies: which entries of a dialogue matter most, when a segment of it is closed.

A policy gives every entry a score; the budget says how many stay, and the best stay. `ChatSession(policy=…)` takes
one of `POLICIES` by name, or an object of your own: a class with a method `scores`, derived from `Policy`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.errors import ConfigError
from sonic_kv.model.chat_format import ChatFormat
from sonic_kv.model.model import SonicModel
from sonic_kv.model.nats import DamageScale
from sonic_kv.model.probe import Probe
from sonic_kv.model.reread import Reading, Repeat, Reread
from sonic_kv.text import nearest

SINKS = 4  # first tokens of a dialogue, which everything attends to
REQUEST = "Repeat the previous context exactly."
REQUEST_PART = "Repeat the part of the previous context exactly, starting with"
QUOTED = 8  # tokens before the segment, with which its repetition starts
EXCERPTS, PIECE = 64, 16  # tokens of a segment that are read once more, and of each piece
FIRST = 1e30  # the score of what is kept before all others


def repetition(form: ChatFormat, cache: SessionCache, token_ids: Sequence[int]) -> list[int]:
    """A request of the user to repeat the open segment, as KVzip has it (arXiv:2505.23416), and the reply that does.

    Where other segments are before it, the reply begins with the newest tokens of these.

    Args:
        token_ids: the transcript.
    """
    first, start = not cache.lengths.segments, len(token_ids) - cache.open_length
    request = form.user(REQUEST if first else REQUEST_PART) + form.generation_prompt()
    return [*request, *token_ids[start if first else max(start - QUOTED, 0) :]]


@dataclass(frozen=True)
class Closing:
    """What a policy sees of a dialogue whose open segment is being closed, layer by layer.

    Entries are those of the memory, then those of the open segment, each part in the order of the transcript. A KV
    head that has fewer of them than another of its layer begins with absent ones.

    Attributes:
        model: base and adapter.
        cache: the dialogue's, not to be changed.
        token_ids: the transcript, of which the open segment is the end.
        length: tokens of the open segment; 0 if memory alone is to shrink.
        target: entries that will stay, of a head in the mean.
        read: what `Policy.reading` asked for, once it has been read.
    """

    model: SonicModel
    cache: SessionCache
    token_ids: Sequence[int]
    length: int
    target: int
    read: Reading | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the layers that are compressed: those without a sliding window."""
        return self.model.compressed_layers

    def keys(self, layer: int, *, rotated: bool = True) -> Tensor:
        """Keys of memory and open segment, 0 where absent; unrotated as if they stood at position 0. (G, n + L, D)"""
        keys = self._padded(layer)[0]
        return keys if rotated else self.model.rope.rotate(layer, keys, -self._places(layer))

    def values(self, layer: int) -> Tensor:
        """Values of memory and open segment, 0 where absent. (G, n + L, D)"""
        return self._padded(layer)[1]

    def opened(self, layer: int) -> tuple[Tensor, Tensor]:
        """Unrotated keys, and values, of the open segment alone. Each (G, L, D)"""
        end = self.cache.next_position
        back = -torch.arange(end - self.length, end, device=self.model.device)
        keys, values = self.cache.layers[layer].newest(self.length)
        return self.model.rope.rotate(layer, keys[0], back), values[0]

    def positions(self, layer: int) -> Tensor:
        """Positions in the transcript, -1 where absent. (G, n + L) int32"""
        old, end = self.cache.layers[layer].positions[0], self.cache.logical_length
        fresh = torch.arange(end - self.length, end, dtype=old.dtype, device=old.device)
        return torch.cat((old, fresh.expand(len(old), -1)), dim=-1)

    def present(self, layer: int) -> Tensor:
        """Which entries there are. (G, n + L) bool"""
        return self.positions(layer) >= 0

    def stored(self, layer: int) -> Tensor:
        """The scores that the memory was stored with, -inf where absent. (G, n)"""
        return self.cache.layers[layer].scores[0]

    def with_stored(self, fresh: Sequence[Tensor]) -> list[Tensor]:
        """Every layer's scores, if the memory keeps its own. (G, L) each → (G, n + L) each"""
        both = zip(self.layers, fresh, strict=True)
        return [torch.cat((self.stored(layer), new.float()), dim=-1) for layer, new in both]

    def watching(self, queries: int) -> Reread:
        """For `Policy.reading`: read the segment's last tokens again, and note what they attend to."""
        device = self.model.device
        offsets = torch.arange(max(self.length - queries, 0), self.length, device=device)
        probe = Probe(rows=torch.arange(len(offsets), device=device)[None])
        return Reread(self.cache, self.token_ids[len(self.token_ids) - self.length :], offsets, probe=probe)

    def attention(self, layer: int) -> Tensor:
        """What the tokens of `watching` attend to: probabilities of a KV head's R query heads. (G, R, Q, n + L)"""
        assert isinstance(self.read, Reread)
        assert self.read.probe is not None
        return self.read.probe.seen[layer][0, ..., self._prefix : self.cache.layers[layer].longest]

    def repeating(self) -> Repeat:
        """For `Policy.reading`: read the segment once more behind a request to repeat it."""
        return Repeat(self.cache, repetition(self.model.format, self.cache, self.token_ids))

    def excerpts(self) -> Repeat:
        """Some of the segment, to be read once more: pieces from all over it, as later turns would take them up."""
        opened, pieces = self.token_ids[len(self.token_ids) - self.length :], EXCERPTS // PIECE
        if len(opened) <= EXCERPTS:
            return Repeat(self.cache, opened)
        starts = torch.linspace(0, len(opened) - PIECE, pieces).long().tolist()
        return Repeat(self.cache, [i for start in starts for i in opened[start : start + PIECE]])

    def largest_attention(self, layer: int) -> Tensor:
        """The most that any token of `repeating` attends to each entry, in any query head. (G, n + L)"""
        assert isinstance(self.read, Repeat)
        return self.read.largest[layer][:, self._prefix :]

    @property
    def _prefix(self) -> int:
        return self.cache.lengths.prefix

    def _padded(self, layer: int) -> list[Tensor]:
        """Keys and values. Each (G, n + L, D)"""
        absent = ~self.present(layer)[..., None]
        held = self.cache.layers[layer].padded()
        return [of[0, :, self._prefix :].masked_fill(absent, 0.0) for of in held]

    def _places(self, layer: int) -> Tensor:
        """RoPE positions of the keys. (G, n + L)"""
        if self.cache.compact:
            return self._prefix + torch.arange(self.positions(layer).shape[-1], device=self.model.device)
        return (self.positions(layer) - self.cache.lengths.rebased).clamp_min(self._prefix)


@runtime_checkable
class Policy(Protocol):
    """Says which entries matter most. Derived classes write `scores`; what they hold does not change with a dialogue,
    since forks of a session share its policy."""

    @property
    def name(self) -> str:
        """What a saved session calls it."""
        return type(self).__name__

    def reading(self, closing: Closing) -> Reading | None:
        """What the model must read before `scores`: `closing.watching` or `closing.repeating`, usually nothing."""
        return None

    def scores(self, closing: Closing) -> list[Tensor]:
        """The importance of memory and open segment: the higher, the longer an entry is kept.

        Entries of all layers and heads are compared with each other. The memory's scores are stored with it
        (`closing.stored`), and count when the budget is lowered.

        Returns:
            of every layer (G, n + L)
        """
        ...

    def recency(self, closing: Closing, layer: int, distance: Tensor) -> Tensor:
        """What the distance (tokens) to the end of the closed history adds to a score: nothing. (G, S) → (G, S)"""
        return torch.zeros_like(distance, dtype=torch.float32)

    def scale(self, model: SonicModel) -> DamageScale | None:
        """What makes nats of scores, if these are ½ log of expected damage up to a constant; None: they are not."""
        return None


@dataclass(frozen=True)
class LearnedPolicy(Policy):
    """The adapter's scorer on unrotated keys and values; memory keeps the score it was stored with."""

    name = "learned"

    @torch.no_grad()
    def scores(self, closing: Closing) -> list[Tensor]:
        adapter = closing.model.adapter
        assert adapter is not None
        opened = ((layer, [x[None] for x in closing.opened(layer)]) for layer in closing.layers)
        return closing.with_stored([adapter.scorer(layer, *entries)[0] for layer, entries in opened])

    @torch.no_grad()
    def recency(self, closing: Closing, layer: int, distance: Tensor) -> Tensor:
        assert closing.model.adapter is not None
        return closing.model.adapter.scorer.recency(layer, distance)

    def scale(self, model: SonicModel) -> DamageScale | None:
        return None if model.adapter is None else model.adapter.scale


@dataclass(frozen=True)
class RereadPolicy(Policy):
    """The most attention that an entry gets while the segment is repeated, as in KVzip (arXiv:2505.23416).

    It covers all that may be asked of a text, and reads every segment twice. Memory keeps the score that it got with
    its own segment; a dialogue's first tokens stay.
    """

    name = "reread"

    def reading(self, closing: Closing) -> Repeat:
        return closing.repeating()

    def scores(self, closing: Closing) -> list[Tensor]:
        fresh = [closing.largest_attention(layer)[:, -closing.length :] for layer in closing.layers]
        return _with_sinks(closing, closing.with_stored(fresh))


@dataclass(frozen=True)
class RecentPolicy(Policy):
    """The log of the attention that the last queries pay, as in SnapKV (arXiv:2404.14469).

    Memory accumulates it from one closing to the next, as in H2O (arXiv:2306.14048).

    Args:
        window: how many queries are observed.
    """

    window: int = 16
    name = "recent"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window={self.window} must be at least 1")

    def reading(self, closing: Closing) -> Reread:
        return closing.watching(self.window)

    def scores(self, closing: Closing) -> list[Tensor]:
        count = min(self.window, closing.length)
        # how many of the queries could see an entry
        behind = torch.arange(closing.length, 0, -1, device=closing.model.device).clamp(max=count)
        result = []
        for layer in closing.layers:
            paid = closing.attention(layer).sum((1, 2))  # (G, n + L)
            old = closing.stored(layer)
            seen = torch.cat((behind.new_full((old.shape[-1],), count), behind))
            now = (paid / seen).clamp_min(1e-9).log()
            memory = old.shape[-1]
            total = torch.logaddexp(now[:, :memory], old).where(old > -torch.inf, old)
            result.append(torch.cat((total, now[:, memory:]), dim=-1))
        return result


@dataclass(frozen=True)
class H2OPolicy(RecentPolicy):
    """As `RecentPolicy`, with every query of the segment: the heavy hitters of H2O (arXiv:2306.14048)."""

    window: int = 1 << 30
    name = "h2o"


@dataclass(frozen=True)
class StreamingPolicy(Policy):
    """A dialogue's first tokens and its newest ones, as in StreamingLLM (arXiv:2309.17453)."""

    name = "streaming"

    def scores(self, closing: Closing) -> list[Tensor]:
        return _with_sinks(closing, [closing.positions(layer).float() for layer in closing.layers])


SHIPPED: tuple[type[Policy], ...] = (LearnedPolicy, RereadPolicy, RecentPolicy, H2OPolicy, StreamingPolicy)
POLICIES = {str(policy.name): policy for policy in SHIPPED}


def _with_sinks(closing: Closing, scores: list[Tensor]) -> list[Tensor]:
    """The dialogue's first tokens, as far as they are not in the prefix, before all others."""
    return [
        score.masked_fill((at >= 0) & (at < SINKS), FIRST)
        for score, at in zip(scores, map(closing.positions, closing.layers), strict=True)
    ]


def policy_of(wanted: "Policy | str | None", model: SonicModel) -> Policy:
    """A policy by name; None: the adapter's, or without one the best that needs no training.

    Raises:
        ConfigError: there is none of that name, or it needs an adapter.
    """
    if wanted is None:
        wanted = "reread" if model.adapter is None else "learned"
    if not isinstance(wanted, str):
        if isinstance(wanted, type) or not isinstance(wanted, Policy):
            raise ConfigError(
                f"policy must be a name or an object of a class derived from Policy, not {wanted!r}"
            )
        return wanted
    if wanted not in POLICIES:
        raise ConfigError(
            f"there is no policy {wanted!r}{nearest(wanted, POLICIES)}: {', '.join(POLICIES)}, or an object"
        )
    if wanted == "learned" and model.adapter is None:
        raise ConfigError(
            "policy 'learned' needs an adapter: load the model with one, or take another policy"
        )
    return POLICIES[wanted]()


def described(policy: Policy) -> dict[str, Any]:
    """A policy as a saved session names it: for shipped ones enough to make it again."""
    ours = POLICIES.get(policy.name) is type(policy)
    return {"name": policy.name, **(vars(policy) if ours else {})}


def restored(written: Mapping[str, Any], model: SonicModel, session: str) -> Policy:
    """The shipped policy that `described` named.

    Raises:
        ConfigError: it is none of ours.
    """
    options = dict(written)
    name = options.pop("name")
    if name not in POLICIES:
        raise ConfigError(
            f"{session} was kept by a policy of its own, {name!r}: load it with policy=… and that policy"
        )
    policy_of(name, model)  # it may need an adapter
    return POLICIES[name](**options)
