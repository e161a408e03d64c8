"""`sonic-kv bench serve`: what a server gains by compressing its dialogues.

Several servers' workers, with the same model and the same texts, live through the same dialogues in lockstep:
at each turn every one of them gets the next message of every dialogue at once, in an order that rotates. What
the machine does meanwhile slows all of them, and the ratios are taken from pairs. HTTP is left out.
"""

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice

import torch

from sonic_kv import __version__
from sonic_kv.bench.options import BenchServeOptions
from sonic_kv.bench.report import Line, Panel, Report, on
from sonic_kv.bench.timing import Machine, Ratio, in_turn, measure_machine, ratio_of_sums, seconds
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues
from sonic_kv.model.batch import batch_step
from sonic_kv.model.model import SonicModel
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.requests import Outcome, Request
from sonic_kv.server.worker import Worker
from sonic_kv.session.generate import generate_step
from sonic_kv.session.options import SamplingConfig
from sonic_kv.text import Progress, bytes_text, table

SONIC, FULL, REPREFILLED = "sonic", "full, kept", "full, re-prefilled"
STEPS = 16  # in one timing of decoding alone
TRIES = 5  # pairs of whole turns, together and one by one
GOALS = {"live": 4.5, REPREFILLED: 2.0, FULL: 1.0, "steps": 5.0}


class Tireless(SonicModel):
    """A model whose replies end at their length limit only, so that all take the same number of steps."""

    stop_ids = frozenset[int]()


@dataclass(frozen=True)
class Capacity:
    """What fits into a fixed memory: dialogues that stay live, and the bytes of one."""

    ratio: float
    live: int
    logical_tokens: int
    bytes_each: int


@dataclass
class Turns:
    """Seconds per reply token of one kind of server, [turn][repetition], and how long its dialogues became."""

    seconds: list[list[float]] = field(default_factory=list)
    logical_tokens: list[int] = field(default_factory=list)  # mean over the dialogues, after each turn

    @property
    def rates(self) -> list[float]:
        """Tokens/s of whole dialogues, and of their last turn."""
        return [
            1 / statistics.mean(map(statistics.mean, times)) for times in (self.seconds, self.seconds[-1:])
        ]


@dataclass(frozen=True)
class Pause:
    """Milliseconds between the pieces of a reply while another dialogue is read whole."""

    median: float
    longest: float
    tokens: int  # that were read meanwhile


@dataclass
class Result:
    """Everything that was measured."""

    model: str
    machine: Machine
    options: BenchServeOptions
    slice_tokens: int
    capacities: list[Capacity]
    turns: dict[str, Turns]
    steps: Ratio  # tokens/s of decoding together / one by one
    tries: Ratio  # of whole turns likewise
    pause: Pause
    version: str = __version__

    @property
    def live(self) -> float:
        """Live dialogues, compressed / with full context."""
        full, sonic = self.capacities
        return sonic.live / full.live if full.live else float("inf")

    def faster(self, other: str) -> Ratio:
        """Tokens/s of the compressed server / those of another."""
        return ratio_of_sums(self.turns[other].seconds, self.turns[SONIC].seconds)


class _Server:
    """A worker and the dialogues that its clients hold."""

    def __init__(
        self,
        model: SonicModel,
        options: BenchServeOptions,
        ratio: float,
        kv_memory: str,
        forgets: bool = False,
    ) -> None:
        serve = ServeOptions(
            kv_memory=kv_memory,
            max_batch=options.dialogues,
            max_waiting=options.dialogues,
            max_waiting_per_key=options.dialogues,
            queue_timeout=1e6,
            store="none",
        )
        self.worker = Worker(model, SessionConfig(), Budget(compression_ratio=ratio), serve, None)
        self._forgets, self._sampling = (
            forgets,
            SamplingConfig(max_new_tokens=options.reply_tokens, temperature=0.0),
        )
        self._dialogues: list[list[dict[str, str]]] = [[] for _ in range(options.dialogues)]
        self._turn = 0

    def turn(self, texts: Sequence[str]) -> tuple[int, int]:
        """Say the next message in every dialogue at once; tokens of all replies, and of a dialogue on average."""
        self._turn += 1
        for messages, text in zip(self._dialogues, texts, strict=True):
            messages.append({"role": "user", "content": text})
        outcomes = self._ask(range(len(self._dialogues)))
        for messages, outcome in zip(self._dialogues, outcomes, strict=True):
            messages.append({"role": "assistant", "content": outcome.text})
        lengths = [outcome.view.stats.logical_tokens for outcome in outcomes if outcome.view]
        return sum(outcome.completion_tokens for outcome in outcomes), round(statistics.mean(lengths))

    def again(self, together: bool) -> None:
        """The newest replies once more, all at once or one after the other."""
        for messages in self._dialogues:
            messages.pop()
        every = range(len(self._dialogues))
        outcomes = self._ask(every) if together else [o for n in every for o in self._ask([n])]
        for messages, outcome in zip(self._dialogues, outcomes, strict=True):
            messages.append({"role": "assistant", "content": outcome.text})

    def _ask(self, numbers: Sequence[int]) -> list[Outcome]:
        # nothing is found in a namespace that nobody has used
        namespace = f"turn {self._turn}" if self._forgets else "open"
        asked = [
            ask(self.worker, Request(namespace, self._dialogues[n], sampling=self._sampling)) for n in numbers
        ]
        return [future.result() for future in asked]


def ask(worker: Worker, request: Request) -> "Future[Outcome]":
    """Submit a request; what becomes of it, or its error."""
    future = Future[Outcome]()

    def end(outcome: Outcome) -> None:
        if outcome.error is None:
            future.set_result(outcome)
        else:
            future.set_exception(outcome.error)

    request.on_end = end
    worker.submit(request)
    return future


@contextmanager
def _running(*workers: Worker) -> Iterator[None]:
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()


def measure(model: SonicModel, name: str, options: BenchServeOptions) -> Result:
    """Count, then time."""
    model = Tireless(model.base, model.tokenizer, model.adapter)
    texts = _Texts(model, options.seed)
    machine = measure_machine(model)
    capacities = [_capacity(model, options, ratio, texts) for ratio in (0.0, options.ratio)]
    turns, tries = _turns(model, options, texts)
    return Result(
        name, machine, options, ServeOptions().slice_tokens, capacities, turns, _steps(model, options), tries,
        _pause(model, options, texts),
    )  # fmt: skip


class _Texts:
    """Texts of a wanted number of tokens."""

    def __init__(self, model: SonicModel, seed: int) -> None:
        found = generate_dialogues(SynthConfig(split="validation", seed=seed, dialogues=200))
        words = " ".join(m["content"] for dialogue in found for m in dialogue["messages"]).split()
        self._words, self._tokenizer, self._draw = words, model.tokenizer, random.Random(seed)

    def __call__(self, tokens: int) -> str:
        text = " ".join(self._draw.choices(self._words, k=tokens))
        return str(
            self._tokenizer.decode(self._tokenizer(text, add_special_tokens=False)["input_ids"][:tokens])
        )

    def dialogue(self, options: BenchServeOptions, length: int) -> list[dict[str, str]]:
        """Messages of `length` tokens, in turns of the wanted size."""
        turns = length // (options.user_tokens + options.reply_tokens)
        sizes = ("user", options.user_tokens), ("assistant", options.reply_tokens)
        return [{"role": role, "content": self(size)} for _ in range(turns) for role, size in sizes]


def _capacity(model: SonicModel, options: BenchServeOptions, ratio: float, texts: _Texts) -> Capacity:
    """Read dialogues until the first one has to leave memory."""
    worker = _Server(model, options, ratio, options.kv_memory).worker
    lengths, number = list[int](), 0
    with _running(worker), Progress("dialogue", None) as bar:
        while not worker.counts["evicted"]:
            number += 1
            request = Request("open", texts.dialogue(options, options.length), name=f"number-{number}")
            view = ask(worker, request).result().view
            assert view is not None
            lengths.append(view.stats.logical_tokens)
            bar.add()
        sizes = [node.nbytes for node in worker.shelf]
    return Capacity(ratio, len(sizes), round(statistics.mean(lengths)), round(statistics.mean(sizes)))


def _turns(model: SonicModel, options: BenchServeOptions, texts: _Texts) -> tuple[dict[str, Turns], Ratio]:
    """Whole dialogues on every kind of server, and the compressed ones' last turns again, together and one by one."""
    count = options.length // (options.user_tokens + options.reply_tokens)
    each = int(1.2 * options.length * model.bytes_per_token)
    memory = str(4 * options.dialogues * each)  # two states of each, and what a turn may need on top
    turns = {name: Turns() for name in (SONIC, FULL, REPREFILLED)}
    together, apart = list[float](), list[float]()
    total = options.repetitions * count * len(turns)
    with Progress("turn", total) as bar:
        for repetition in range(options.repetitions):
            servers = {
                SONIC: _Server(model, options, options.ratio, memory),
                FULL: _Server(model, options, 0.0, memory),
                REPREFILLED: _Server(model, options, 0.0, memory, forgets=True),
            }
            with _running(*(server.worker for server in servers.values())):
                for number in range(count):
                    said = [texts(options.user_tokens) for _ in range(options.dialogues)]
                    for name, server in in_turn([*servers.items()], number + repetition):
                        start = time.perf_counter()
                        tokens, length = server.turn(said)
                        taken = (time.perf_counter() - start) / tokens
                        if repetition == 0:
                            turns[name].seconds.append([])
                            turns[name].logical_tokens.append(length)
                        turns[name].seconds[number].append(taken)
                        bar.add()
                if repetition == 0:
                    for _ in range(TRIES):
                        together.append(seconds(partial(servers[SONIC].again, together=True)))
                        apart.append(seconds(partial(servers[SONIC].again, together=False)))
    return turns, ratio_of_sums([apart], [together])


@torch.no_grad()
def _steps(model: SonicModel, options: BenchServeOptions) -> Ratio:
    """Decode steps of all dialogues together against one dialogue's: tokens/s."""
    cache = model.new_cache()
    entries = round((1 - options.ratio) * options.length)
    shape = (1, model.num_heads, entries, model.head_dim)
    for layer in cache.layers:
        layer.update(*(torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2)))
    cache.mark_prefix()
    rows = [cache.fork() for _ in range(options.dialogues)]

    def together() -> None:
        for _ in range(STEPS):
            batch_step(model.twin, rows, [1] * options.dialogues)

    def alone() -> None:
        with closing(generate_step(model, [[1]], [cache.fork()], SamplingConfig(temperature=0.0))) as steps:
            for _ in islice(steps, STEPS):
                pass

    together()  # warm-up
    alone()
    pairs = [(seconds(together), seconds(alone)) for _ in range(4 * TRIES)]
    return ratio_of_sums([[options.dialogues * b for _, b in pairs]], [[a for a, _ in pairs]])


def _pause(model: SonicModel, options: BenchServeOptions, texts: _Texts) -> Pause:
    """A reply's pieces while another dialogue with a long system prompt arrives, read and closed whole."""
    server = _Server(model, options, options.ratio, "64GiB")
    times = list[float]()
    reading = Request(
        "reads",
        [{"role": "system", "content": texts(options.length // 4)}, *texts.dialogue(options, options.length * 3 // 4)],
        name="long",
    )  # fmt: skip
    messages = [{"role": "user", "content": texts(options.user_tokens)}]
    replying = Request("replies", messages, sampling=SamplingConfig(max_new_tokens=4096, temperature=0.0))
    replying.on_piece = lambda piece: times.append(time.perf_counter())
    with _running(server.worker):
        done = ask(server.worker, replying)
        while not times:
            time.sleep(0.001)
        start = time.perf_counter()
        view = ask(server.worker, reading).result().view
        end = time.perf_counter()
        server.worker.cancel(replying)
        done.exception()
    assert view is not None
    meanwhile = [at for at in times if start <= at <= end]
    gaps = [1e3 * (b - a) for a, b in zip([start, *meanwhile], [*meanwhile, end], strict=True)]
    return Pause(statistics.median(gaps), max(gaps), view.stats.logical_tokens)


def report(result: Result) -> Report:
    """The figures as a Markdown page."""
    options = result.options
    full, sonic = result.capacities
    claims = [
        (
            f"live dialogues of {options.length} tokens in {options.kv_memory}, {options.ratio:g} removed / full",
            f"{result.live:.2f} ({sonic.live} / {full.live}; one has {bytes_text(sonic.bytes_each)} / "
            f"{bytes_text(full.bytes_each)}: {full.bytes_each / sonic.bytes_each:.2f})",
            GOALS["live"],
        ),
        (
            "tokens/s / full context, re-prefilled each turn",
            str(result.faster(REPREFILLED)),
            GOALS[REPREFILLED],
        ),
        ("tokens/s / full context, kept", str(result.faster(FULL)), GOALS[FULL]),
        (
            f"decoding {options.dialogues} together / one by one, steps alone",
            str(result.steps),
            GOALS["steps"],
        ),
        (f"whole turns, {options.dialogues} together / one by one", str(result.tries), None),
    ]
    rows = [
        [name, *(f"{rate:.0f}" for rate in turns.rates), str(turns.logical_tokens[-1])]
        for name, turns in result.turns.items()
    ]
    lines = [
        f"# Serving: {result.model}",
        "",
        on(result.machine),
        f"{options.dialogues} dialogues at a time, turns of {options.user_tokens} user and {options.reply_tokens} "
        f"reply tokens, {options.repetitions} repetitions, seed {options.seed}. Ratios of tokens/s: sums of paired "
        "times, 95 % bootstrap interval.",
        "",
        table(
            ["what", "measured", "at least"],
            [[name, value, "" if goal is None else f"{goal:g}"] for name, value, goal in claims],
        ),
        "",
        f"While another dialogue of {result.pause.tokens} tokens is read, in slices of {result.slice_tokens}, a "
        f"reply's pieces come every {result.pause.median:.0f} ms (median), the longest pause is "
        f"{result.pause.longest:.0f} ms.",
        "",
        table(
            ["server", "tokens/s, whole dialogues", "tokens/s, last turn", "tokens of a dialogue at the end"],
            rows,
        ),
    ]
    ratios = {"live": result.live, **{name: asdict(result.faster(name)) for name in (FULL, REPREFILLED)}}
    rates: dict[str, Line] = {
        name: (turns.logical_tokens, [1 / statistics.mean(times) for times in turns.seconds])
        for name, turns in result.turns.items()
    }
    panel = Panel(f"tokens/s, {options.dialogues} dialogues", "logical tokens of each dialogue", rates)
    return Report("\n".join(lines) + "\n", {**asdict(result), "ratios": ratios}, [[panel]])
