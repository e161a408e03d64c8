"""`sonic-kv bench dialogue`: whole dialogues, turn by turn, on every method at once.

All methods live through the same dialogue in lockstep: at each turn every one of them reads the user's
message and writes a reply of fixed length, in an order that rotates. What the machine does meanwhile
slows all of them, and the ratios are taken from pairs. Tokens are random; time does not depend on them.

Of a long dialogue only some turns need to be timed: the others are read in, and a turn between two timed ones
counts as on the line between them.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sonic_kv import __version__
from sonic_kv.bench.options import BenchDialogueOptions, TurnTokens
from sonic_kv.bench.report import Line, Panel, Report, on
from sonic_kv.bench.timing import Machine, Ratio, decode_bound, in_turn, measure_machine, ratio_of_sums
from sonic_kv.bench.ways import FULL, REPREFILLED, Measured, Player, Run, drawn, ways
from sonic_kv.model.model import SonicModel
from sonic_kv.text import Progress, bytes_text, table

PREFIX = 4  # tokens that are never compressed


@dataclass
class Turns:
    """What one method took in the timed turns. Times in seconds, sizes in bytes; [turn][repetition]"""

    first_token: list[list[float]] = field(default_factory=list)
    decode: list[list[float]] = field(default_factory=list)  # all tokens of the reply but the first
    closing: list[list[float]] = field(default_factory=list)
    live_bytes: list[int] = field(default_factory=list)  # after closing
    peak_bytes: list[int] = field(default_factory=list)  # before
    entries: list[int] = field(default_factory=list)  # when the reply ends

    def add(self, number: int, turn: Measured) -> None:
        """Note the timed turn of this number, once more or for the first time."""
        if number == len(self.decode):
            for column in (self.first_token, self.decode, self.closing):
                column.append([])
            self.peak_bytes.append(turn.peak_bytes)
            self.live_bytes.append(turn.live_bytes)
            self.entries.append(turn.entries)
        self.first_token[number].append(turn.first_token)
        self.decode[number].append(turn.decode)
        self.closing[number].append(turn.closing)

    def total(self, weights: Sequence[float]) -> list[list[float]]:
        """Everything that the first timed turns took, each as often as it counts."""
        parts = zip(weights, self.first_token, self.decode, self.closing, strict=False)
        return [[weight * sum(times) for times in zip(*part, strict=True)] for weight, *part in parts]


@dataclass(frozen=True)
class Result:
    """Everything that was measured of one kind of dialogue, and on what."""

    model: str
    machine: Machine
    options: BenchDialogueOptions
    bytes_per_token: int
    turn: TurnTokens
    batch: int
    timed: list[int]  # numbers of the turns that were
    turns: dict[str, Turns]
    bounds: dict[str, dict[int, float]]  # by method and length: seconds of a decode step there, at best
    version: str = __version__

    def count(self, length: int) -> int:
        """Turns of the first `length` logical tokens."""
        return max(length // sum(self.turn), 1)

    def weights(self, count: int) -> list[float]:
        """How many of the first `count` turns each timed one of them stands for."""
        return shares([number for number in self.timed if number < count], count)

    def ending(self, length: int) -> slice:
        """The timed ones of the last eighth of these turns."""
        stop = self.count(length)
        start = stop - max(stop // 8, 1)
        within = [at for at, number in enumerate(self.timed) if start <= number < stop]
        return slice(within[0], within[-1] + 1)


def timed_turns(options: BenchDialogueOptions, turn: TurnTokens) -> list[int]:
    """Which turns are timed: the first, and so many up to each length, the last of them at its end."""
    found, before = {0}, 0
    for length in sorted(options.lengths):
        count = max(length // sum(turn), 1)
        span = count - before
        parts = min(options.timed or span, span)
        found |= {before + (part + 1) * span // parts - 1 for part in range(parts)}
        before = count
    return sorted(found)


def shares(timed: Sequence[int], count: int) -> list[float]:
    """How much each timed turn counts for in the sum of all, what lies between two taken as on a line.

    Args:
        timed: numbers of the timed turns, from 0 to count - 1, both included.
    """
    found = [1.0] * len(timed)
    for left in range(len(timed) - 1):
        between = (timed[left + 1] - timed[left] - 1) / 2  # as many halves for either end
        found[left] += between
        found[left + 1] += between
    return found


@torch.no_grad()
def measure(model: SonicModel, name: str, options: BenchDialogueOptions) -> list[Result]:
    """Live through each kind of dialogue `repetitions` times (and once before, to warm up, for two turns)."""
    machine = measure_machine(model)
    kinds = [(turn, batch) for turn in options.turns for batch in options.batch]
    total = options.repetitions * sum(len(timed_turns(options, turn)) for turn, _ in kinds)
    with Progress("turn", total) as bar:
        return [_measure(model, name, options, machine, turn, batch, bar) for turn, batch in kinds]


def _measure(
    model: SonicModel,
    name: str,
    options: BenchDialogueOptions,
    machine: Machine,
    turn: TurnTokens,
    batch: int,
    bar: Progress,
) -> Result:
    timed, turns = timed_turns(options, turn), dict[str, Turns]()
    for _ in _lockstep(model, options, turn, batch, range(min(timed[-1] + 1, 2))):
        pass
    for repetition in range(options.repetitions):
        for number, measured in enumerate(_lockstep(model, options, turn, batch, timed, repetition)):
            for method, found in measured.items():
                turns.setdefault(method, Turns()).add(number, found)
            bar.add()
    result = Result(name, machine, options, model.bytes_per_token, turn, batch, timed, turns, {})
    for method, mine in turns.items():
        for length in options.lengths if mine.entries[0] else ():
            mean = statistics.mean(mine.entries[result.ending(length)]) - turn.reply / 2
            bound = decode_bound(model, machine, mean, batch)
            result.bounds.setdefault(method, {})[length] = bound
    return result


def _lockstep(
    model: SonicModel,
    options: BenchDialogueOptions,
    turn: TurnTokens,
    batch: int,
    timed: Sequence[int],
    repetition: int = 0,
) -> Iterator[dict[str, Measured]]:
    generator = torch.Generator().manual_seed(options.seed)
    prefixes = drawn(model, batch, PREFIX, generator)
    players: list[Player] = [Run(model, way, prefixes) for way in ways(model, options)]
    if options.against is not None:
        from sonic_kv.bench.against import Remote

        players.append(Remote(options.against, model, batch))
    before = 0
    for number in timed:
        untimed = [
            (drawn(model, 1, turn.user, generator)[0], drawn(model, 1, turn.reply, generator)[0])
            for _ in range(before, number)
        ]
        messages = drawn(model, batch, turn.user, generator)
        measured: dict[str, Measured] = {}
        for player in in_turn(players, number + repetition):
            player.fill(untimed)
            measured[player.name] = player.turn(messages, turn.reply)
        yield {player.name: measured[player.name] for player in players}
        before = number + 1


@dataclass(frozen=True)
class Row:
    """One method at one length. Ratios have a 95 % interval; those at the end are of the last eighth.

    What is not known of another engine is None.
    """

    method: str
    length: int
    seconds: float  # the whole dialogue so far, mean over repetitions
    to_full: Ratio | None
    to_reprefilled: Ratio | None
    first_token_ms: float  # at the end, median
    first_token_to_full: Ratio | None
    step_ms: float  # at the end, median
    bound_ms: float | None  # the least that a step can take there
    step_to_full: Ratio | None
    tokens_per_second: float  # at the end, all rows of the batch
    closing_share: float
    live_bytes: int | None
    peak_bytes: int | None
    live_share: float | None  # of the bytes of every token's keys and values


def rows(result: Result) -> list[Row]:
    """Every method at every length."""
    return [_row(result, name, length) for length in result.options.lengths for name in result.turns]


def _row(result: Result, name: str, length: int) -> Row:
    mine, end = result.turns[name], result.ending(length)
    weights = result.weights(result.count(length))

    def against(other: str, times: Callable[[Turns], list[list[float]]]) -> Ratio | None:
        return ratio_of_sums(times(mine), times(result.turns[other])) if other in result.turns else None

    total, steps = mine.total(weights), result.turn.reply - 1
    step = statistics.median(t / steps for turn in mine.decode[end] for t in turn)
    live, peak = mine.live_bytes[len(weights) - 1], max(mine.peak_bytes[: len(weights)])
    logical = result.batch * (PREFIX + result.count(length) * sum(result.turn))
    closing = sum(weight * sum(times) for weight, times in zip(weights, mine.closing, strict=False))
    return Row(
        method=name,
        length=length,
        seconds=sum(map(statistics.mean, total)),
        to_full=against(FULL, lambda turns: turns.total(weights)),
        to_reprefilled=against(REPREFILLED, lambda turns: turns.total(weights)),
        first_token_ms=1e3 * statistics.median(t for turn in mine.first_token[end] for t in turn),
        first_token_to_full=against(FULL, lambda turns: turns.first_token[end]),
        step_ms=1e3 * step,
        bound_ms=1e3 * result.bounds[name][length] if name in result.bounds else None,
        step_to_full=against(FULL, lambda turns: turns.decode[end]),
        tokens_per_second=result.batch / step,
        closing_share=closing / sum(map(sum, total)),
        live_bytes=live or None,
        peak_bytes=peak or None,
        live_share=live / (logical * result.bytes_per_token) or None,
    )


HEAD = (
    "method", "whole dialogue, s", "/ full", "/ re-prefilled", "first token, ms", "/ full", "step, ms",
    "at best", "/ full", "tokens/s", "closing", "live bytes", "of full", "peak bytes",
)  # fmt: skip


def report(results: Sequence[Result]) -> Report:
    """The figures of every kind of dialogue at every length."""
    options = results[0].options
    lines = [
        f"# Whole dialogues: {results[0].model}",
        "",
        on(results[0].machine),
        f"{options.repetitions} repetitions, seed {options.seed}. Ratios: sums of paired "
        "times, 95 % bootstrap interval. First token and step: the last eighth of the turns. At best: weights and "
        "cache read once a step at the rate above, or the arithmetic, whichever takes longer.",
    ]
    for result in results:
        found = rows(result)
        for length in options.lengths:
            cells = [_cells(row) for row in found if row.length == length]
            count, timed = result.count(length), len(result.weights(result.count(length)))
            some = "" if timed == count else f"; {timed} of {count} turns timed, the others read in"
            title = f"## {length} tokens, batch {result.batch}, turns of {result.turn}{some}"
            lines += ["", title, "", table(HEAD, cells)]
    data = [{**asdict(result), "rows": [asdict(row) for row in rows(result)]} for result in results]
    return Report("\n".join(lines) + "\n", data, [_panels(result) for result in results])


def _panels(result: Result) -> list[Panel]:
    """Time so far, decode step and bytes over the dialogue's length."""
    steps, size = result.turn.reply - 1, sum(result.turn)
    found: list[dict[str, Line]] = [{}, {}, {}]
    length = [PREFIX + (number + 1) * size for number in result.timed]
    weights = [result.weights(number + 1) for number in result.timed]
    for name, mine in result.turns.items():
        found[0][name] = length, [sum(map(statistics.mean, mine.total(some))) for some in weights]
        found[1][name] = length, [1e3 * statistics.median(turn) / steps for turn in mine.decode]
        if mine.entries[0]:
            found[2][name] = length, [b / 1e6 for b in mine.live_bytes]
    titles = ("time so far, s", "decode step, ms", "live cache, MB")
    across = f"logical tokens, batch {result.batch}, turns of {result.turn}"
    return [Panel(title, across, lines) for title, lines in zip(titles, found, strict=True)]


def _cells(row: Row) -> list[str]:
    def known(figure: Any, text: Callable[[Any], str] = str) -> str:
        return "" if figure is None else text(figure)

    return [
        row.method, f"{row.seconds:.2f}", known(row.to_full), known(row.to_reprefilled),
        f"{row.first_token_ms:.1f}", known(row.first_token_to_full), f"{row.step_ms:.2f}",
        known(row.bound_ms, "{:.2f}".format), known(row.step_to_full), f"{row.tokens_per_second:.0f}",
        f"{100 * row.closing_share:.1f} %", known(row.live_bytes, bytes_text),
        known(row.live_share, "{:.3f}".format), known(row.peak_bytes, bytes_text),
    ]  # fmt: skip
