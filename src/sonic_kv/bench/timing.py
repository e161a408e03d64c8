"""Clocks, paired ratios with intervals, and what the machine could do at best."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from sonic_kv.model.model import SonicModel

Player = TypeVar("Player")
DRAWS = 1000  # of a bootstrap


def seconds(run: Callable[[], object]) -> float:
    """Wall time of `run`, with everything it started on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums of paired times, and its 95 % bootstrap interval (over several repetitions)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "" if self.low == self.high else f" ({self.low:.2f}–{self.high:.2f})"
        return f"{self.value:.2f}{interval}"


def ratio_of_sums(
    measured: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], seed: int = 0
) -> Ratio:
    """Sum of `measured` over that of `baseline`.

    Repetitions are drawn anew for every place in the dialogue, the same ones on both sides: what
    differs from place to place is no chance.

    Args:
        measured, baseline: times, [place][repetition].
    """
    rng, drawn = random.Random(seed), []
    for _ in range(DRAWS):
        ours = theirs = 0.0
        for a, b in zip(measured, baseline, strict=True):
            for _ in a:
                at = rng.randrange(len(a))
                ours, theirs = ours + a[at], theirs + b[at]
        drawn.append(ours / theirs)
    drawn.sort()
    value = sum(map(sum, measured)) / sum(map(sum, baseline))
    return Ratio(*(round(x, 4) for x in (value, drawn[DRAWS // 40], drawn[-DRAWS // 40])))


def in_turn(players: Sequence[Player], round: int) -> list[Player]:
    """The players of a round in an order that rotates from round to round: what slows one slows all in time."""
    first = round % len(players)
    return [*players[first:], *players[:first]]


@dataclass(frozen=True)
class Machine:
    """What the device reaches in practice: bytes read and multiply-adds (as two operations), a second."""

    device: str
    threads: int
    dtype: str
    bytes_per_second: float
    operations_per_second: float


def measure_machine(model: SonicModel, repetitions: int = 5) -> Machine:
    """Read a tensor far larger than any cache; multiply two square matrices. The best of several."""
    cuda = model.device.type == "cuda"
    large = torch.ones(
        1 << 28 if cuda else 1 << 26, device=model.device
    )  # float32: others are slow to add up
    size = 8192 if cuda else 1024
    square = torch.ones(size, size, device=model.device, dtype=model.dtype)
    read = min(seconds(large.sum) for _ in range(repetitions))
    multiply = min(seconds(lambda: square @ square) for _ in range(repetitions))
    name = torch.cuda.get_device_name(model.device) if cuda else model.device.type
    return Machine(
        name, torch.get_num_threads(), str(model.dtype).removeprefix("torch."), large.nbytes / read,
        2 * size**3 / multiply,
    )  # fmt: skip


def decode_bound(model: SonicModel, machine: Machine, entries: float, batch: int) -> float:
    """Least seconds of a decode step: every weight and entry read once, every weight multiplied once a row.

    The embedding counts once where it is also the output matrix; else only a row of it is read.
    """
    embedding = model.base.get_input_embeddings().weight
    head = model.base.get_output_embeddings()
    weights: int = sum(weight.numel() for weight in model.base.parameters())
    if head is None or head.weight is not embedding:
        weights -= embedding.numel()
    query_heads: int = model.config.num_attention_heads
    attention = 4 * model.num_layers * query_heads * model.head_dim * entries
    read = weights * model.dtype.itemsize + batch * entries * model.bytes_per_token
    operations = batch * (2 * weights + attention)
    return max(read / machine.bytes_per_second, operations / machine.operations_per_second)


@dataclass(frozen=True)
class Paired:
    """Two things timed in turn: medians in milliseconds, and the pairwise ratio's quartiles."""

    name: str
    ms: float
    baseline_ms: float
    ratio: float
    low: float
    high: float


def paired(
    name: str, measured: Callable[[], object], baseline: Callable[[], object], repetitions: int
) -> Paired:
    """Time `measured` and `baseline` in turn, after one warm-up each."""
    measured(), baseline()
    times = [(seconds(measured), seconds(baseline)) for _ in range(repetitions)]
    low, middle, high = statistics.quantiles((a / b for a, b in times), n=4)
    ours, theirs = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return Paired(name, round(ours, 3), round(theirs, 3), round(middle, 3), round(low, 3), round(high, 3))
