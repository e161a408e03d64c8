"""`sonic-kv bench dialogue`: whole dialogues, turn by turn, on every method at once.

All methods live through the same dialogue in lockstep: at each turn every one of them reads the user's
message and writes a reply of fixed length, in an order that rotates. What the machine does meanwhile
slows all of them, and the ratios are taken from pairs. Tokens are random; time does not depend on them.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import accumulate, islice
from typing import cast

import torch

from sonic_kv import __version__
from sonic_kv.bench.options import BenchDialogueOptions, TurnTokens
from sonic_kv.bench.report import Line, Panel, Report, on
from sonic_kv.bench.timing import (
    Machine,
    Ratio,
    decode_bound,
    in_turn,
    measure_machine,
    ratio_of_sums,
    seconds,
)
from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Bits, Budget, SessionConfig
from sonic_kv.compress.policies import H2OPolicy, Policy, StreamingPolicy
from sonic_kv.model.model import SonicModel
from sonic_kv.session.generate import generate_step
from sonic_kv.session.options import SamplingConfig
from sonic_kv.text import Progress, bytes_text, table

PREFIX = 4  # tokens that are never compressed
FULL, REPREFILLED = "full", "re-prefilled"


@dataclass(frozen=True)
class Way:
    """A way to keep history: its name, and what closes a segment (None: nothing is removed)."""

    name: str
    ratio: float = 0.0
    compressor: Compressor | None = None

    def new_cache(self, model: SonicModel) -> SessionCache:
        bits = None if self.compressor is None else self.compressor.config.bits
        return model.new_cache(bits=bits)


def ways(model: SonicModel, options: BenchDialogueOptions) -> list[Way]:
    """The methods to time: the two full contexts, then each kind of compression at each ratio."""
    found = [Way(name) for name in (FULL, REPREFILLED) if name in options.methods]
    policies: dict[str, Policy | None] = {"streaming": StreamingPolicy(), "h2o": H2OPolicy(), "sonic": None}
    for kind, policy in policies.items():
        if kind not in options.methods:
            continue
        for bits in options.bits if kind == "sonic" else (0,):
            own = kind == "sonic"  # the others give every head as many entries
            config = SessionConfig(
                reencode=own,
                bits=cast("Bits | None", bits or None),
                allocation=options.allocation if own else "per_head",
            )
            compressor = Compressor(model, config, policy)
            name = f"{kind} {bits} bits" if bits else kind
            found += [Way(f"{name} {ratio:g}", ratio, compressor) for ratio in options.ratios]
    return found


@dataclass
class Turns:
    """What one method took, turn by turn. Times in seconds, sizes in bytes; [turn][repetition]"""

    first_token: list[list[float]] = field(default_factory=list)
    decode: list[list[float]] = field(default_factory=list)  # all tokens of the reply but the first
    closing: list[list[float]] = field(default_factory=list)
    live_bytes: list[int] = field(default_factory=list)  # after closing
    peak_bytes: list[int] = field(default_factory=list)  # before
    entries: list[int] = field(default_factory=list)  # when the reply ends

    def total(self, turns: slice = slice(None)) -> list[list[float]]:
        """Everything that a turn took."""
        parts = zip(self.first_token[turns], self.decode[turns], self.closing[turns], strict=True)
        return [[sum(times) for times in zip(*part, strict=True)] for part in parts]


class _Run:
    """One method's side of one dialogue, for every row of the batch."""

    def __init__(self, model: SonicModel, method: Way, prefixes: list[list[int]]) -> None:
        self.model, self.method = model, method
        self.transcripts = [list(ids) for ids in prefixes]
        self.unfed: list[list[int]] = [[] for _ in prefixes]  # the reply's last token was sampled, not fed
        self.caches = [self._fresh(ids) for ids in prefixes]

    def _fresh(self, prefix: list[int]) -> SessionCache:
        cache = self.method.new_cache(self.model)
        self.model.feed(cache, prefix)
        cache.mark_prefix()
        return cache

    def turn(self, messages: list[list[int]], reply_tokens: int) -> tuple[float, float, float, int, int]:
        """Seconds to the first token, of the others and of closing; bytes and entries before closing."""
        prompts = [rest + message for rest, message in zip(self.unfed, messages, strict=True)]
        for row, message in enumerate(messages):
            self.transcripts[row] += message
        if self.method.name == REPREFILLED:
            self.caches = [self.method.new_cache(self.model) for _ in messages]
            prompts = [list(ids) for ids in self.transcripts]
        replies: list[list[int]] = []
        with closing(
            generate_step(self.model, prompts, self.caches, SamplingConfig(temperature=0.0))
        ) as steps:
            first = seconds(lambda: replies.append(next(steps)))
            decode = seconds(lambda: replies.extend(islice(steps, reply_tokens - 1)))
        for row, ids in enumerate(zip(*replies, strict=True)):
            self.transcripts[row] += ids
            self.unfed[row] = list(ids[-1:])
        peak, entries = self.bytes(), self.caches[0].stored
        return first, decode, seconds(self._close), peak, entries

    def _close(self) -> None:
        if self.method.compressor is None:
            return
        fed = [  # in the transcript, but not in the cache: the reply's last token
            (cache, ids[: cache.logical_length])
            for cache, ids in zip(self.caches, self.transcripts, strict=True)
        ]
        self.method.compressor.close_all(fed, Budget(compression_ratio=self.method.ratio))
        for cache in self.caches:
            cache.pack()

    def bytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)


@dataclass(frozen=True)
class Result:
    """Everything that was measured of one kind of dialogue, and on what."""

    model: str
    machine: Machine
    options: BenchDialogueOptions
    bytes_per_token: int
    turn: TurnTokens
    turns: dict[str, Turns]
    bounds: dict[str, dict[int, float]]  # by method and length: seconds of a decode step there, at best
    version: str = __version__

    def upto(self, length: int) -> slice:
        """The turns of the first `length` logical tokens."""
        return slice(0, max(length // sum(self.turn), 1))

    def ending(self, length: int) -> slice:
        """The last eighth of these turns."""
        stop = self.upto(length).stop
        return slice(stop - max(stop // 8, 1), stop)


@torch.no_grad()
def measure(model: SonicModel, name: str, options: BenchDialogueOptions) -> list[Result]:
    """Live through each kind of dialogue `repetitions` times (and once before, to warm up, for two turns)."""
    machine = measure_machine(model)
    total = options.repetitions * sum(_count(options, turn) for turn in options.turns)
    with Progress("turn", total) as bar:
        return [_measure(model, name, options, machine, turn, bar) for turn in options.turns]


def _count(options: BenchDialogueOptions, turn: TurnTokens) -> int:
    """Turns of the longest dialogue."""
    return max(max(options.lengths) // sum(turn), 1)


def _measure(
    model: SonicModel,
    name: str,
    options: BenchDialogueOptions,
    machine: Machine,
    turn: TurnTokens,
    bar: Progress,
) -> Result:
    chosen = ways(model, options)
    turns = {method.name: Turns() for method in chosen}
    count = _count(options, turn)
    for _ in _lockstep(model, chosen, options, turn, min(count, 2)):
        pass
    for repetition in range(options.repetitions):
        for number, measured in enumerate(_lockstep(model, chosen, options, turn, count, repetition)):
            for method, (first, decode, close, peak, live, entries) in measured.items():
                mine = turns[method]
                if not repetition:
                    for column in (mine.first_token, mine.decode, mine.closing):
                        column.append([])
                    mine.peak_bytes.append(peak)
                    mine.live_bytes.append(live)
                    mine.entries.append(entries)
                mine.first_token[number].append(first)
                mine.decode[number].append(decode)
                mine.closing[number].append(close)
            bar.add()
    result = Result(name, machine, options, model.bytes_per_token, turn, turns, {})
    for method, mine in turns.items():
        result.bounds[method] = {
            length: decode_bound(
                model,
                machine,
                statistics.mean(mine.entries[result.ending(length)]) - turn.reply / 2,
                options.batch,
            )
            for length in options.lengths
        }
    return result


Measured = dict[str, tuple[float, float, float, int, int, int]]


def _lockstep(
    model: SonicModel,
    chosen: list[Way],
    options: BenchDialogueOptions,
    turn: TurnTokens,
    count: int,
    repetition: int = 0,
) -> Iterator[Measured]:
    generator = torch.Generator().manual_seed(options.seed)

    def tokens(length: int) -> list[list[int]]:
        shape = (options.batch, length)
        found: list[list[int]] = torch.randint(model.config.vocab_size, shape, generator=generator).tolist()
        return found

    prefixes = tokens(PREFIX)
    runs = [_Run(model, method, prefixes) for method in chosen]
    for number in range(count):
        messages = tokens(turn.user)
        measured: Measured = {}
        for run in in_turn(runs, number + repetition):
            first, decode, close, peak, entries = run.turn(messages, turn.reply)
            measured[run.method.name] = (first, decode, close, peak, run.bytes(), entries)
        yield measured


@dataclass(frozen=True)
class Row:
    """One method at one length. Ratios have a 95 % interval; those at the end are of the last eighth."""

    method: str
    length: int
    seconds: float  # the whole dialogue so far, mean over repetitions
    to_full: Ratio | None
    to_reprefilled: Ratio | None
    first_token_ms: float  # at the end, median
    first_token_to_full: Ratio | None
    step_ms: float  # at the end, median
    step_to_full: Ratio | None
    tokens_per_second: float  # at the end, all rows of the batch
    of_bound: float  # bound / step at the end
    closing_share: float
    live_bytes: int
    peak_bytes: int
    live_share: float  # of the bytes of every token's keys and values


def rows(result: Result) -> list[Row]:
    """Every method at every length."""
    return [_row(result, name, length) for length in result.options.lengths for name in result.turns]


def _row(result: Result, name: str, length: int) -> Row:
    mine, whole, end = result.turns[name], result.upto(length), result.ending(length)

    def against(other: str, times: Callable[[Turns], list[list[float]]]) -> Ratio | None:
        return ratio_of_sums(times(mine), times(result.turns[other])) if other in result.turns else None

    total, steps = mine.total(whole), result.turn.reply - 1
    step = statistics.median(t / steps for turn in mine.decode[end] for t in turn)
    live = mine.live_bytes[whole.stop - 1]
    logical = result.options.batch * (PREFIX + whole.stop * sum(result.turn))
    return Row(
        method=name,
        length=length,
        seconds=sum(map(statistics.mean, total)),
        to_full=against(FULL, lambda turns: turns.total(whole)),
        to_reprefilled=against(REPREFILLED, lambda turns: turns.total(whole)),
        first_token_ms=1e3 * statistics.median(t for turn in mine.first_token[end] for t in turn),
        first_token_to_full=against(FULL, lambda turns: turns.first_token[end]),
        step_ms=1e3 * step,
        step_to_full=against(FULL, lambda turns: turns.decode[end]),
        tokens_per_second=result.options.batch / step,
        of_bound=result.bounds[name][length] / step,
        closing_share=sum(map(sum, mine.closing[whole])) / sum(map(sum, total)),
        live_bytes=live,
        peak_bytes=max(mine.peak_bytes[whole]),
        live_share=live / (logical * result.bytes_per_token),
    )


HEAD = (
    "method", "whole dialogue, s", "/ full", "/ re-prefilled", "first token, ms", "/ full", "step, ms",
    "/ full", "tokens/s", "of bound", "closing", "live bytes", "of full", "peak bytes",
)  # fmt: skip


def report(results: Sequence[Result]) -> Report:
    """The figures of every kind of dialogue at every length."""
    options = results[0].options
    lines = [
        f"# Whole dialogues: {results[0].model}",
        "",
        on(results[0].machine),
        f"Batch {options.batch}, {options.repetitions} repetitions, seed {options.seed}. Ratios: sums of paired "
        "times, 95 % bootstrap interval. First token and step: the last eighth of the turns. Bound: weights and "
        "cache read once a step at the rate above, or the arithmetic, whichever takes longer.",
    ]
    for result in results:
        found = rows(result)
        for length in options.lengths:
            cells = [_cells(row) for row in found if row.length == length]
            lines += ["", f"## {length} tokens, turns of {result.turn}", "", table(HEAD, cells)]
    data = [{**asdict(result), "rows": [asdict(row) for row in rows(result)]} for result in results]
    return Report("\n".join(lines) + "\n", data, [_panels(result) for result in results])


def _panels(result: Result) -> list[Panel]:
    """Time so far, decode step and bytes over the dialogue's length."""
    steps, size = result.turn.reply - 1, sum(result.turn)
    found: list[dict[str, Line]] = [{}, {}, {}]
    for name, mine in result.turns.items():
        length = [PREFIX + (n + 1) * size for n in range(len(mine.decode))]
        found[0][name] = length, list(accumulate(map(statistics.mean, mine.total())))
        found[1][name] = length, [1e3 * statistics.median(turn) / steps for turn in mine.decode]
        found[2][name] = length, [b / 1e6 for b in mine.live_bytes]
    titles = ("time so far, s", "decode step, ms", "live cache, MB")
    across = f"logical tokens, turns of {result.turn}"
    return [Panel(title, across, lines) for title, lines in zip(titles, found, strict=True)]


def _cells(row: Row) -> list[str]:
    def optional(ratio: Ratio | None) -> str:
        return "" if ratio is None else str(ratio)

    return [
        row.method, f"{row.seconds:.2f}", optional(row.to_full), optional(row.to_reprefilled),
        f"{row.first_token_ms:.1f}", optional(row.first_token_to_full), f"{row.step_ms:.2f}",
        optional(row.step_to_full), f"{row.tokens_per_second:.0f}", f"{row.of_bound:.2f}",
        f"{100 * row.closing_share:.1f} %", bytes_text(row.live_bytes), f"{row.live_share:.3f}",
        bytes_text(row.peak_bytes),
    ]  # fmt: skip
