"""Methods: ways to shrink what is kept of the past when a segment has been closed.

Every method obeys the same rules. The prefix stays raw. When a segment closes, every method has the same
number of entries to keep of the whole history (per layer and KV head, or in total where it shares them
out unevenly), and what it drops is gone for good. The open segment is raw. What is kept stays at its own
position, except where text is read anew.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.layers import Memory
from sonic_kv.compress.closing import allowed
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, PolicyName, SessionConfig
from sonic_kv.errors import SonicError
from sonic_kv.eval.turns import Row, read
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reread import Reading
from sonic_kv.session.generate import generate
from sonic_kv.session.options import SamplingConfig

SINKS = 4  # first tokens that StreamingLLM keeps, the prefix included
SUMMARY_TOKENS = 64  # longest summary: writing one takes a decoding step a token
SUMMARY_REQUEST = "Sum up our conversation so far in a few words. Keep every name, number and wish of mine."
SUMMARY_HEAD = "What we have said so far, in short: "


class Unfair(SonicError):
    """A method kept more entries than it may."""


class Method:
    """A way to shrink the past; made anew for every model and ratio.

    Attributes:
        budgeted: it keeps the number of entries that a ratio allows; otherwise it runs once.
        attention: `Row.paid` and `Row.window` are needed.
        hidden: `Row.hidden` is needed.
        donor: `Row.donor` is needed.
        reference: why it is no rival but something to compare with; then entries are not checked.
        default: it runs unless methods are named.
    """

    budgeted = True
    default = True
    attention = False
    hidden = False
    donor = False
    reference: str | None = None

    def __init__(self, model: SonicModel, ratio: float | None, config: SessionConfig) -> None:
        self.model, self.config = model, config
        self.budget = Budget(compression_ratio=ratio)

    @classmethod
    def missing(cls, model: SonicModel) -> str | None:
        """What the method lacks to run on this model; None: nothing."""
        return None

    def reading(self, row: Row, target: int) -> tuple[Row, list[int]] | None:
        """What must be read before the open segment can be closed: tokens, into a row that becomes `row.aside`."""
        return None

    def close(self, row: Row, target: int) -> None:
        """Close the row's open segment; of memory and open segment keep `target` entries per layer and head."""
        raise NotImplementedError

    def steps(self, row: Row, target: int) -> Generator[Reading, None, None]:
        """`close`, but the caller has the model read again what it yields."""
        self.close(row, target)
        yield from ()


def close_all(model: SonicModel, tasks: Sequence[tuple[Method, Row]]) -> list[Exception | None]:
    """Close each row's open segment by its method; what methods have to read for it is read side by side.

    Returns:
        for each row why it failed, or `Unfair`: it keeps more entries than the ratio allows. Others are closed all
        the same.
    """
    errors: list[Exception | None] = [None] * len(tasks)
    asked = []
    for number, (method, row) in enumerate(tasks):
        with _watching(errors, number, row):
            reading = method.reading(row, _allowed(method, row))
            if reading is not None:
                row.aside, ids = reading
                asked.append((row, row.aside, ids))
    if asked:
        read(model, [aside for _, aside, _ in asked], [ids for _, _, ids in asked], [[] for _ in asked])
    for row, aside, _ in asked:
        row.seconds += aside.seconds
    going = {n: _steps(*task) for n, task in enumerate(tasks) if errors[n] is None}
    while going:
        wanted: dict[int, Reading] = {}
        for number, steps in going.items():
            with _watching(errors, number, tasks[number][1]):
                wanted.update((number, request) for request in islice(steps, 1))
        begun = time.perf_counter()
        model.reread(list(wanted.values()))
        share = (time.perf_counter() - begun) / max(sum(r.rows for r in wanted.values()), 1)
        for number, request in wanted.items():
            tasks[number][1].seconds += share * request.rows
        going = {number: going[number] for number in wanted}
    return errors


@contextmanager
def _watching(errors: list[Exception | None], number: int, row: Row) -> Iterator[None]:
    """Note the time that a row takes, and what goes wrong."""
    begun = time.perf_counter()
    try:
        yield
    except Exception as error:  # whatever it is must not stop other rows
        errors[number] = error
    row.seconds += time.perf_counter() - begun


def _allowed(method: Method, row: Row) -> int:
    """Entries that a layer and head may keep of memory and open segment."""
    return allowed(row.cache.lengths.closing(row.cache.open_length), method.budget)


def _steps(method: Method, row: Row) -> Generator[Reading, None, None]:
    """The method's steps, and a look at what it kept."""
    allowed = _allowed(method, row)
    yield from method.steps(row, allowed)
    row.aside, held = None, row.held()
    # layers with shares of their own round each to whole entries
    if method.reference is None and sum(held) > len(held) * (allowed + 0.5):
        raise Unfair(f"{sum(held) / len(held):.1f} entries are kept, and {allowed} are allowed")


class Full(Method):
    """Everything is kept."""

    budgeted = False
    reference = "full context: recovery 1"

    def close(self, row: Row, target: int) -> None:
        row.keep([row.present(layer) for layer in range(self.model.num_layers)])


class NoHistory(Method):
    """Every closed segment is dropped."""

    budgeted = False
    reference = "history dropped: recovery 0"

    def close(self, row: Row, target: int) -> None:
        row.keep([torch.zeros_like(row.present(layer)) for layer in range(self.model.num_layers)])


class OtherHistory(Method):
    """As much history as full context has, but of another dialogue: what a wrong past does."""

    budgeted = False
    donor = True
    reference = "negative control: the history of another dialogue, in full"

    def __init__(self, model: SonicModel, ratio: float | None, config: SessionConfig) -> None:
        super().__init__(model, ratio, config)
        self._caches: dict[int, SessionCache] = {}

    def close(self, row: Row, target: int) -> None:
        lengths = row.cache.lengths.closing(row.cache.open_length)
        cache, size = self._read(row).fork(), min(lengths.memory, len(row.donor))
        cache.keep(_as_memory(cache, lengths.prefix, size, torch.zeros(size)), lengths)
        row.cache = cache

    def _read(self, row: Row) -> SessionCache:
        """The row's own prefix and the other dialogue, read once."""
        key = id(row.donor)
        if key not in self._caches:
            self._caches[key] = SessionCache(self.model.num_layers)
            prefix = row.token_ids[: row.cache.lengths.prefix]
            room = self.model.max_length - len(prefix)
            self.model.feed(self._caches[key], [*prefix, *row.donor[:room]])
        return self._caches[key]


def _as_memory(cache: SessionCache, prefix: int, size: int, positions: Tensor) -> list[Memory]:
    """The `size` entries behind the first `prefix` as memory at these positions, (size,), all of them alike."""
    found = []
    for layer in cache.layers:
        keys, values = (list(x[0, :, prefix : prefix + size]) for x in (layer.keys, layer.values))
        at, score = positions.to(keys[0].device, torch.int32), torch.zeros(size, device=keys[0].device)
        found.append(Memory(keys, values, [at] * len(keys), [score] * len(keys)))
    return found


class Ranked(Method):
    """Eviction by one score per entry, layer and KV head: each head keeps its own best."""

    def score(self, row: Row, layer: int, target: int) -> Tensor:
        """The higher the sooner kept. (G, n + L)"""
        raise NotImplementedError

    def close(self, row: Row, target: int) -> None:
        kept = []
        for layer in range(self.model.num_layers):
            best = self.score(row, layer, target).argsort(dim=-1, descending=True, stable=True)
            kept.append(torch.zeros_like(row.present(layer)).scatter(-1, best[:, :target], True))
        row.keep(kept)


class Sliding(Ranked):
    """The newest entries."""

    def score(self, row: Row, layer: int, target: int) -> Tensor:
        return row.positions(layer)


class StreamingLLM(Ranked):
    """The first tokens and the newest ones (arXiv:2309.17453); keys stay at their own positions."""

    def score(self, row: Row, layer: int, target: int) -> Tensor:
        positions = row.positions(layer)
        return torch.where(positions < SINKS, row.cache.logical_length, positions)


class H2O(Ranked):
    """Half of the entries are the newest, half those that received most attention (arXiv:2306.14048).

    Attention is summed over all queries so far, as in the paper, and averaged over the query heads
    that share a KV head. Entries are dropped when a segment closes, not at every token.
    """

    attention = True

    def score(self, row: Row, layer: int, target: int) -> Tensor:
        positions = row.positions(layer)
        newest = positions >= row.cache.logical_length - (target - target // 2)
        return torch.where(newest, torch.inf, row.paid[layer][0, :, row.cache.lengths.prefix :])


class Random(Ranked):
    """Entries drawn at random, anew in each layer and head; the same on every run."""

    def score(self, row: Row, layer: int, target: int) -> Tensor:
        positions = row.positions(layer)
        generator = torch.Generator().manual_seed(layer)
        heads, longest = positions.shape[0], row.cache.logical_length
        drawn = torch.rand(heads, longest, generator=generator).to(positions.device)
        return drawn.gather(-1, positions.long())


class Sonic(Method):
    """This project: entries chosen by the adapter's scorer and re-encoded with its LoRA."""

    policy: PolicyName = "learned"

    def __init__(self, model: SonicModel, ratio: float | None, config: SessionConfig) -> None:
        super().__init__(model, ratio, replace(config, policy=self.policy))
        self._compressor = Compressor(model, self.config)

    @classmethod
    def missing(cls, model: SonicModel) -> str | None:
        if model.adapter is None:
            return "an adapter"
        return None if model.adapter.reencodes else "an adapter with a LoRA"

    def steps(self, row: Row, target: int) -> Generator[Reading, None, None]:
        row.cache = row.cache.fork(bits=self.config.bits)
        yield from self._compressor.steps(row.cache, row.token_ids, self.budget)


class Selection(Sonic):
    """This project without re-encoding: the adapter's scorer chooses, the raw entries stay."""

    def __init__(self, model: SonicModel, ratio: float | None, config: SessionConfig) -> None:
        super().__init__(model, ratio, replace(config, reencode=False))

    @classmethod
    def missing(cls, model: SonicModel) -> str | None:
        return (
            "an adapter with anchored Nexus tokens" if model.adapter is None or model.whole_segment else None
        )


class RecentQueries(Sonic):
    """This project without an adapter: entries chosen by what the segment's last queries attend to."""

    policy: PolicyName = "recent"

    def __init__(self, model: SonicModel, ratio: float | None, config: SessionConfig) -> None:
        plain = copy(model)
        plain.adapter = None
        super().__init__(plain, ratio, config)

    @classmethod
    def missing(cls, model: SonicModel) -> str | None:
        return None


class Reread(RecentQueries):
    """This project without an adapter: entries chosen by what is looked at while the segment is repeated."""

    policy: PolicyName = "reread"


class Retold(Method):
    """The past is kept as text and read anew, after every segment, at the positions behind the prefix."""

    def text(self, row: Row, target: int) -> list[int]:
        """Tokens that stand for the closed history, at most `target`."""
        raise NotImplementedError

    def reading(self, row: Row, target: int) -> tuple[Row, list[int]]:
        cache = SessionCache(self.model.num_layers, compact=True)
        return Row(cache), row.token_ids[: row.cache.lengths.prefix] + self.text(row, target)

    def close(self, row: Row, target: int) -> None:
        assert row.aside is not None
        lengths, cache = row.cache.lengths.closing(row.cache.open_length), row.aside.cache
        size = cache.stored - lengths.prefix
        cache.keep(_as_memory(cache, lengths.prefix, size, torch.arange(size)), lengths)
        row.cache = cache


class Truncation(Retold):
    """The newest tokens of the transcript, read anew: a chat that forgets its oldest messages."""

    def text(self, row: Row, target: int) -> list[int]:
        history = row.token_ids[row.cache.lengths.prefix :]
        return history[len(history) - target :]


class Summary(Retold):
    """A summary of the past, written by the model itself after every segment from what it still has."""

    default = False  # it decodes at every segment

    def text(self, row: Row, target: int) -> list[int]:
        form = self.model.format
        prompt = form.user(SUMMARY_REQUEST) + form.generation_prompt()
        head = form.user(SUMMARY_HEAD)
        room = min(SUMMARY_TOKENS, target - len(head))
        if room < 1:
            return []
        (reply,) = generate(self.model, [prompt], [row.cache.fork()], SamplingConfig(max_new_tokens=room))
        return form.user(SUMMARY_HEAD + reply.text)[:target]


OWN: dict[str, type[Method]] = {
    "full": Full,
    "none": NoHistory,
    "other-history": OtherHistory,
    "sonic": Sonic,
    "selection": Selection,
    "reread": Reread,
    "recent-queries": RecentQueries,
    "random": Random,
    "sliding": Sliding,
    "streaming-llm": StreamingLLM,
    "h2o": H2O,
    "truncation": Truncation,
    "summary": Summary,
}
