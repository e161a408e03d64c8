"""Ways to keep a dialogue's history that are timed side by side, and one way's side of a dialogue."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, Protocol, cast

import torch

from sonic_kv.bench.options import BenchDialogueOptions
from sonic_kv.bench.timing import seconds
from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Bits, Budget, SessionConfig
from sonic_kv.compress.policies import StreamingPolicy
from sonic_kv.model.model import SonicModel
from sonic_kv.session.generate import generate_step
from sonic_kv.session.options import SamplingConfig

FULL, REPREFILLED = "full", "re-prefilled"
Ids = list[int]


class Measured(NamedTuple):
    """What a turn took. Seconds; bytes and entries are 0 where they are not known."""

    first_token: float
    decode: float  # all tokens of the reply but the first
    closing: float
    peak_bytes: int  # before closing
    live_bytes: int  # after it
    entries: int  # when the reply ends


class Player(Protocol):
    """One side of a dialogue, or of several at once."""

    name: str

    def turn(self, messages: list[Ids], reply_tokens: int) -> Measured:
        """Read a message in every dialogue and write the replies."""
        ...

    def fill(self, turns: Sequence[tuple[Ids, Ids]]) -> None:
        """Take turns in, message and reply, as they were everybody's own; the time does not count."""
        ...


@dataclass(frozen=True)
class Way:
    """A way to keep history: its name, and what closes a segment (None: nothing is ever closed)."""

    name: str
    ratio: float = 0.0
    compressor: Compressor | None = None

    def new_cache(self, model: SonicModel) -> SessionCache:
        bits = None if self.compressor is None else self.compressor.config.bits
        return model.new_cache(bits=bits)


def ways(model: SonicModel, options: BenchDialogueOptions) -> list[Way]:
    """The ways to time: full contexts, then each kind of compression at each ratio."""
    chosen = options.methods
    found = [Way(name) for name in (FULL, REPREFILLED) if name in chosen]
    equal = SessionConfig(reencode=False, allocation="per_head")  # every head has as many entries
    if "few-bits" in chosen:
        few: tuple[Bits, ...] = (8, 4)
        for bits in few:
            config = replace(equal, bits=bits)
            found.append(Way(f"{FULL}, int{bits}", 0.0, Compressor(model, config, StreamingPolicy())))
    if "streaming" in chosen:
        compressor = Compressor(model, equal, StreamingPolicy())
        found += [Way(f"streaming {ratio:g}", ratio, compressor) for ratio in options.ratios]
    for number in options.bits if "sonic" in chosen else ():
        config = SessionConfig(
            bits=cast("Bits | None", number or None), allocation=options.allocation, refit=options.refit
        )
        compressor = Compressor(model, config)
        name = f"sonic, int{number}" if number else "sonic"
        found += [Way(f"{name} {ratio:g}", ratio, compressor) for ratio in options.ratios]
    return found


class Run:
    """One way's side of a dialogue, for every row of the batch."""

    def __init__(self, model: SonicModel, way: Way, prefixes: list[Ids]) -> None:
        self.model, self.way, self.name = model, way, way.name
        self.transcripts = [list(ids) for ids in prefixes]
        self.unfed: list[Ids] = [[] for _ in prefixes]  # the reply's last token was sampled, not fed
        self.caches = [self._fresh(ids) for ids in prefixes]

    def _fresh(self, prefix: Ids) -> SessionCache:
        cache = self.way.new_cache(self.model)
        self.model.feed(cache, prefix)
        cache.mark_prefix()
        return cache

    def turn(self, messages: list[Ids], reply_tokens: int) -> Measured:
        """Read a message in every row and write the replies."""
        prompts = [rest + message for rest, message in zip(self.unfed, messages, strict=True)]
        for transcript, message in zip(self.transcripts, messages, strict=True):
            transcript += message
        if self.name == REPREFILLED:
            self.caches = [self.way.new_cache(self.model) for _ in messages]
            prompts = [list(ids) for ids in self.transcripts]
        replies: list[Ids] = []
        with closing(
            generate_step(self.model, prompts, self.caches, SamplingConfig(temperature=0.0))
        ) as steps:
            first = seconds(lambda: replies.append(next(steps)))
            decode = seconds(lambda: replies.extend(islice(steps, reply_tokens - 1)))
        for row, ids in enumerate(zip(*replies, strict=True)):
            self.transcripts[row] += ids
            self.unfed[row] = list(ids[-1:])
        peak, entries = self._bytes(), self.caches[0].stored
        close = seconds(lambda: self._close(range(len(self.caches))))
        return Measured(first, decode, close, peak, self._bytes(), entries)

    def fill(self, turns: Sequence[tuple[Ids, Ids]]) -> None:
        """Take turns in untimed: one row reads them, the others become copies of it."""
        for message, reply in turns:
            prompt = [*self.unfed[0], *message, *reply[:-1]]
            self.transcripts[0] += [*message, *reply]
            self.unfed[0] = reply[-1:]
            if self.name != REPREFILLED:
                self.model.feed(self.caches[0], prompt)
                self._close(range(1))
        if turns:
            rows = range(1, len(self.caches))
            self.caches = [self.caches[0], *(self._copy(self.caches[0]) for _ in rows)]
            self.transcripts = [list(self.transcripts[0]) for _ in self.transcripts]
            self.unfed = [list(self.unfed[0]) for _ in self.unfed]

    def _copy(self, cache: SessionCache) -> SessionCache:
        """The same entries in storage of their own, as every dialogue has."""
        state = {name: tensor.clone() for name, tensor in cache.state().items()}
        return SessionCache.from_state(
            self.model.num_layers,
            state,
            cache.lengths,
            compact=cache.compact,
            bits=cache.bits,
            windows=self.model.windows,
        )

    def _close(self, rows: range) -> None:
        if self.way.compressor is None:
            return
        fed = [  # in the transcript, but not in the cache: the reply's last token
            (self.caches[row], self.transcripts[row][: self.caches[row].logical_length]) for row in rows
        ]
        self.way.compressor.close_all(fed, Budget(compression_ratio=self.way.ratio))
        for row in rows:
            self.caches[row].pack()

    def _bytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)


def drawn(model: SonicModel, rows: int, length: int, generator: torch.Generator) -> list[Ids]:
    """Random tokens: time does not depend on them."""
    found: list[Ids] = torch.randint(model.config.vocab_size, (rows, length), generator=generator).tolist()
    return found
