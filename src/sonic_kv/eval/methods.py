"""Methods: ways to shrink what is kept of the past when a segment is closed.

Every method obeys the same rules. The prefix stays raw. When a segment closes, every method keeps the same number of
entries of the whole history, on average over layers and KV heads, and what it drops is gone for good. The open
segment is raw. What is kept stays at its own position, except where text is read anew.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.layers import Memory
from sonic_kv.compress.closing import allowed
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.compress.policies import (
    H2OPolicy,
    Policy,
    RecentPolicy,
    RereadPolicy,
    StreamingPolicy,
    repetition,
)
from sonic_kv.eval import rivals
from sonic_kv.eval.rivals import Rival
from sonic_kv.eval.turns import Row, read
from sonic_kv.eval.watch import Recorder, Repeated
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reread import Reading, Reread
from sonic_kv.session.generate import generate
from sonic_kv.session.options import SamplingConfig

SUMMARY_TOKENS = 64  # longest summary: writing one takes a decoding step a token
SUMMARY_REQUEST = "Sum up our conversation so far in a few words. Keep every name, number and wish of mine."
SUMMARY_HEAD = "What we have said so far, in short: "
KVZIP_SINKS = 4  # entries that KVzip always keeps


@dataclass(frozen=True)
class Aside:
    """Tokens to be read into a row that is not the dialogue's own, before a segment can be closed."""

    row: Row
    token_ids: Sequence[int]


Steps = Generator[Reading | Aside, None, None]


class Closer(ABC):
    """Closes the segments of one row.

    Args:
        donor: the transcript of another dialogue.
    """

    def __init__(
        self, model: SonicModel, budget: Budget, config: SessionConfig, donor: Sequence[int]
    ) -> None:
        self.model, self.budget, self.config, self.donor = model, budget, config, donor

    @abstractmethod
    def close(self, row: Row) -> Steps:
        """Close the open segment; the caller has the model read what is yielded."""

    def damage(self, row: Row) -> float | None:
        """What all that was dropped is predicted to cost, in nats a later token; None: that is not known."""
        return None


Start = Callable[[SonicModel, Budget, SessionConfig, Sequence[int]], Closer]


@dataclass(frozen=True)
class Method:
    """A way to shrink the past.

    Attributes:
        start: makes what closes the segments of one row.
        watch: what is recorded while segments are read.
        budgeted: it keeps the number of entries that a ratio allows; otherwise it runs once.
        default: it runs unless methods are named.
        in_nats: its scores are the adapter's, so that a budget can be a predicted damage.
        missing: what it lacks to run on a model; None: nothing.
    """

    start: Start
    watch: type[Recorder] | None = None
    budgeted: bool = True
    default: bool = True
    in_nats: bool = False
    missing: Callable[[SonicModel], str | None] = lambda model: None


def close_all(model: SonicModel, tasks: Sequence[tuple[Closer, Row]]) -> list[Exception | None]:
    """Close each row's open segment; what methods have to read for it is read side by side.

    Returns:
        for each row why it failed, if it did; others are closed all the same.
    """
    errors: list[Exception | None] = [None] * len(tasks)
    going = {n: closer.close(row) for n, (closer, row) in enumerate(tasks)}
    while going:
        wanted: dict[int, Reading | Aside] = {}
        for number, steps in going.items():
            with _watching(errors, number, tasks[number][1]):
                wanted.update((number, request) for request in islice(steps, 1))
        asides = {n: r for n, r in wanted.items() if isinstance(r, Aside)}
        if asides:
            read(
                model,
                [a.row for a in asides.values()],
                [a.token_ids for a in asides.values()],
                [[]] * len(asides),
            )
        for number, aside in asides.items():
            tasks[number][1].seconds += aside.row.seconds
            aside.row.seconds = 0.0  # it may be read on
        again = {n: r for n, r in wanted.items() if not isinstance(r, Aside) and not _noted(tasks[n][1], r)}
        begun = time.perf_counter()
        model.reread(list(again.values()))
        share = (time.perf_counter() - begun) / max(sum(r.rows for r in again.values()), 1)
        for number, request in again.items():
            tasks[number][1].seconds += share * request.rows
        going = {number: going[number] for number in wanted}
    return errors


def _noted(row: Row, request: Reading) -> bool:
    """Whether the row's recorders have what is asked for: then it is not read again."""
    recorder = row.noted.get(type(request.probe)) if isinstance(request, Reread) else None
    if isinstance(request, Reread) and recorder is not None:
        request.probe = recorder
    return recorder is not None


@contextmanager
def _watching(errors: list[Exception | None], number: int, row: Row) -> Iterator[None]:
    """Note the time that a row takes, and what goes wrong."""
    begun = time.perf_counter()
    try:
        yield
    except Exception as error:  # whatever it is must not stop other rows
        errors[number] = error
    row.seconds += time.perf_counter() - begun


# --- references --------------------------------------------------------------------------------


class Full(Closer):
    """Everything is kept."""

    def close(self, row: Row) -> Steps:
        compressor = Compressor(_plain(self.model), _rivals(self.config), rivals.Sliding())
        yield from compressor.steps(row.cache, row.token_ids, Budget())


class NoHistory(Closer):
    """Every closed segment is dropped."""

    def close(self, row: Row) -> Steps:
        lengths = row.cache.lengths.closing(row.cache.open_length)
        row.cache.keep(_as_memory(row.cache, lengths.prefix, torch.arange(0)), lengths)
        yield from ()


class OtherHistory(Closer):
    """As much history as full context has, but of another dialogue: what a wrong past does."""

    def __init__(
        self, model: SonicModel, budget: Budget, config: SessionConfig, donor: Sequence[int]
    ) -> None:
        super().__init__(model, budget, config, donor)
        self._other = Row(model.new_cache())  # reads the other dialogue, as far as it is needed

    def close(self, row: Row) -> Steps:
        lengths = row.cache.lengths.closing(row.cache.open_length)
        size = min(lengths.memory, len(self.donor))
        wanted = [*row.token_ids[: lengths.prefix], *self.donor[:size]]
        more = wanted[self._other.cache.logical_length :]
        if more:
            yield Aside(self._other, more)
        row.cache = self._other.cache.fork()
        row.cache.keep(_as_memory(row.cache, lengths.prefix, torch.zeros(size)), lengths)


def _as_memory(cache: SessionCache, prefix: int, positions: Tensor) -> list[Memory]:
    """The raw entries behind the prefix as memory at these positions, (n,), all of them alike."""
    found, size = [], len(positions)
    for layer in cache.layers:
        keys, values = ([head[prefix : prefix + size] for head in heads] for heads in layer.heads())
        at, score = positions.to(keys[0].device, torch.int32), torch.zeros(size, device=keys[0].device)
        found.append(Memory(keys, values, [at] * len(keys), [score] * len(keys)))
    return found


# --- entries chosen by a policy ----------------------------------------------------------------


def _plain(model: SonicModel) -> SonicModel:
    """The model without its adapter."""
    plain = copy(model)
    plain.adapter = None
    return plain


class Compressing(Closer):
    """Closes as a session does.

    Args:
        policy: which entries matter; None: the adapter's.
    """

    def __init__(
        self, model: SonicModel, budget: Budget, config: SessionConfig, policy: Policy | None
    ) -> None:
        super().__init__(model, budget, config, ())
        self._compressor = Compressor(model, config, policy)

    def close(self, row: Row) -> Steps:
        if self.config.bits is not None and row.cache.bits is None:
            row.cache = row.cache.fork(bits=self.config.bits)
        yield from self._compressor.steps(row.cache, row.token_ids, self.budget)

    def damage(self, row: Row) -> float | None:
        return self._compressor.predicted_damage(row.cache)


def _sonic(model: SonicModel, budget: Budget, config: SessionConfig, _: Sequence[int]) -> Closer:
    return Compressing(model, budget, config, None)


def _selection(model: SonicModel, budget: Budget, config: SessionConfig, _: Sequence[int]) -> Closer:
    return Compressing(model, budget, replace(config, reencode=False), None)


def _shipped(policy: type[Policy]) -> Start:
    """A session with one of the policies that need no adapter."""

    def start(model: SonicModel, budget: Budget, config: SessionConfig, _: Sequence[int]) -> Closer:
        return Compressing(_plain(model), budget, config, policy())

    return start


def _needs_adapter(model: SonicModel) -> str | None:
    return "an adapter" if model.adapter is None else None


def _needs_reencoding(model: SonicModel) -> str | None:
    adapter = model.adapter
    if adapter is None:
        return "an adapter"
    return (
        None
        if adapter.reencodes and not model.whole_segment
        else "an adapter whose re-encoding can be left out"
    )


def _rivals(config: SessionConfig) -> SessionConfig:
    """How rivals hold what they keep: raw, under one budget, within which those of equal heads rank by place."""
    return SessionConfig(
        min_segment_tokens=config.min_segment_tokens,
        max_segment_tokens=config.max_segment_tokens,
        refit=False,
    )


def rival(kind: type[Rival], *, shared: bool, default: bool = True) -> Method:
    """A published method: with as many entries in every head, or with a shared budget."""

    def start(model: SonicModel, budget: Budget, config: SessionConfig, _: Sequence[int]) -> Closer:
        return Compressing(_plain(model), budget, _rivals(config), kind(shared))

    return Method(start, kind.watch, default=default)


class KVzip(Closer):
    """Attention that an entry receives at most when the text is repeated (arXiv:2505.23416).

    A segment is one of KVzip's chunks and is repeated when it closes, over what is left of the chunks before it; the
    request is a message of the user. An entry keeps the score of its own chunk, and all layers and heads share the
    budget, both as in KVzip. The repetition is a forward of its own, longer than the segment.
    """

    def __init__(
        self, model: SonicModel, budget: Budget, config: SessionConfig, donor: Sequence[int]
    ) -> None:
        super().__init__(model, budget, config, donor)
        self._policy = _Chunks()
        self._compressor = Compressor(_plain(model), _rivals(config), self._policy)

    def close(self, row: Row) -> Steps:
        aside = row.fork((partial(Repeated, length=row.cache.open_length, sinks=KVZIP_SINKS),))
        yield Aside(aside, self.repetition(row))
        recorder = aside.noted[Repeated]
        self._policy.fresh = recorder.found
        yield from self._compressor.steps(row.cache, row.token_ids, self.budget)

    def repetition(self, row: Row) -> list[int]:
        """What is read behind the open segment."""
        return repetition(self.model.format, row.cache, row.token_ids)


class _Chunks(Rival):
    """Scores of the open segment as they are given, and those that the memory was stored with."""

    fresh: list[Tensor]  # per layer (G, L)

    def score(self, head: rivals.Head) -> Tensor:
        fresh = self.fresh[head.layer][head.number]
        found = torch.cat((head.stored[: len(head.stored) - len(fresh)], fresh.float()))
        return found.masked_fill(head.positions < KVZIP_SINKS, torch.inf)

    def _ranked(self, score: Tensor, head: rivals.Head) -> Tensor:
        return score


# --- text read anew ----------------------------------------------------------------------------


class Retold(Closer):
    """The past is kept as text and read anew, after every segment, at the positions behind the prefix."""

    @abstractmethod
    def text(self, row: Row, target: int) -> list[int]:
        """Tokens that stand for the closed history, at most `target`."""

    def close(self, row: Row) -> Steps:
        lengths = row.cache.lengths.closing(row.cache.open_length)
        text = self.text(row, allowed(lengths, self.budget))
        other = Row(self.model.new_cache(compact=True))
        yield Aside(other, row.token_ids[: lengths.prefix] + text)
        other.cache.keep(_as_memory(other.cache, lengths.prefix, torch.arange(len(text))), lengths)
        row.cache = other.cache


class Truncation(Retold):
    """The newest tokens of the transcript, read anew: a chat that forgets its oldest messages."""

    def text(self, row: Row, target: int) -> list[int]:
        history = row.token_ids[row.cache.lengths.prefix :]
        return history[len(history) - target :]


class Summary(Retold):
    """A summary of the past, written by the model itself after every segment from what it still has."""

    def text(self, row: Row, target: int) -> list[int]:
        form = self.model.format
        prompt = form.user(SUMMARY_REQUEST) + form.generation_prompt()
        room = min(SUMMARY_TOKENS, target - len(form.user(SUMMARY_HEAD)))
        if room < 1:
            return []
        (reply,) = generate(
            self.model, [prompt], [row.cache.fork()], SamplingConfig(max_new_tokens=room, temperature=0.0)
        )
        return form.user(SUMMARY_HEAD + reply.text)[:target]


def _both(name: str, kind: type[Rival], *, default: bool = True) -> dict[str, Method]:
    """As published, and with a shared budget."""
    return {
        name: rival(kind, shared=False, default=default),
        f"{name}-shared": rival(kind, shared=True, default=default),
    }


METHODS: Mapping[str, Method] = {
    "full": Method(Full, budgeted=False),
    "none": Method(NoHistory, budgeted=False),
    "other-history": Method(OtherHistory, budgeted=False),
    "sonic": Method(_sonic, in_nats=True, missing=_needs_adapter),
    "selection": Method(_selection, in_nats=True, missing=_needs_reencoding),
    "reread": Method(_shipped(RereadPolicy)),
    "recent": Method(_shipped(RecentPolicy)),
    "h2o-policy": Method(_shipped(H2OPolicy), default=False),
    "kvzip": Method(KVzip),
    "streaming-llm": Method(_shipped(StreamingPolicy)),
    **_both("h2o", rivals.H2O),
    **_both("snapkv", rivals.SnapKV),
    **_both("critical-snapkv", rivals.CriticalSnapKV, default=False),
    **_both("tova", rivals.TOVA, default=False),
    **_both("expected-attention", rivals.ExpectedAttention),
    **_both("keydiff", rivals.KeyDiff),
    **_both("lagkv", rivals.LagKV, default=False),
    **_both("cur", rivals.CUR, default=False),
    "random": rival(rivals.Random, shared=False, default=False),
    "sliding": rival(rivals.Sliding, shared=False, default=False),
    "truncation": Method(Truncation),
    "summary": Method(Summary, default=False),
}
