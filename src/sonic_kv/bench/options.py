"""Options of the benchmarks."""

from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

from sonic_kv.compress.options import Allocation, Budget, SessionConfig
from sonic_kv.options import option, parse_bytes, require

Shape = Literal["qwen3-0.6b", "qwen3-1.7b", "qwen2.5-7b", "llama-8b"]
BENCH_METHODS = ("full", "re-prefilled", "streaming", "h2o", "sonic")


@dataclass(frozen=True)
class BenchTrainingOptions:
    """A training step that is timed."""

    shape: Shape | None = option(None, "random weights of a known shape, instead of a model")
    batch_size: int = option(4, "dialogues of the step")
    exchanges: int = option(16, "exchanges of every dialogue")
    lora_rank: int = option(16, "rank of the adapter's LoRA")
    repetitions: int = option(10, "paired repetitions")
    seed: int = option(0, "seed of dialogues and budgets")

    def __post_init__(self) -> None:
        for name in ("batch_size", "exchanges", "lora_rank", "repetitions"):
            least = 2 if name in ("exchanges", "repetitions") else 1
            require(getattr(self, name) >= least, f"{name}={getattr(self, name)} must be at least {least}")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")


@dataclass(frozen=True)
class BenchClosingOptions:
    """What is timed."""

    history: int = option(1024, "tokens of closed history")
    segment: int = option(128, "tokens of the segment that is closed")
    ratio: float = option(0.8, "compression ratio")
    steps: int = option(16, "decode steps in one timing")
    repetitions: int = option(30, "pairs of timings")
    seed: int = option(0, "seed of the random tokens")

    def __post_init__(self) -> None:
        Budget(compression_ratio=self.ratio)
        require(self.history > 4, f"history={self.history} must be more than 4")
        require(self.repetitions >= 2, f"repetitions={self.repetitions} must be at least 2")
        for name in ("segment", "steps"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")


class TurnTokens(NamedTuple):
    """Tokens of a turn."""

    user: int
    reply: int

    def __str__(self) -> str:
        return f"{self.user} user and {self.reply} reply tokens"


@dataclass(frozen=True)
class BenchDialogueOptions:
    """The dialogue that every method lives through."""

    shape: Shape | None = option(
        None, "random weights of this shape instead of a model: the same speed, nothing to download"
    )
    lengths: tuple[int, ...] = option((1024, 4096, 8192), "logical tokens at which figures are taken")
    user_tokens: tuple[int, ...] = option(
        (64,), "tokens of each user message; several: a dialogue of each kind, with as many reply lengths"
    )
    reply_tokens: tuple[int, ...] = option((192,), "tokens of each reply")
    methods: tuple[str, ...] = option(
        BENCH_METHODS,
        "full: kept cache; re-prefilled: the whole transcript again at every turn; streaming: sink and newest "
        "entries; h2o: largest attention so far; sonic",
    )
    ratios: tuple[float, ...] = option((0.5, 0.8, 0.9), "compression ratios of the last three")
    storages: tuple[str, ...] = option(
        ("full",), "how sonic's memory rests between turns: full, int8, int4, one or more of them"
    )
    allocation: Allocation = option("pooled", "how sonic shares its budget; pooled reads heads one by one")
    batch: int = option(1, "dialogues at a time")
    repetitions: int = option(3, "times that the dialogue is lived through")
    seed: int = option(0, "seed of the random tokens and weights")
    out: str | None = option(None, "folder for result.json, report.md and plot.svg; none: the report alone")

    def __post_init__(self) -> None:
        known = ", ".join(BENCH_METHODS)
        unknown = ", ".join(name for name in self.methods if name not in BENCH_METHODS)
        require(not unknown, f"methods: unknown {unknown}; known are {known}")
        require(bool(self.methods), f"methods: at least one of {known}")
        for ratio in self.ratios:
            Budget(compression_ratio=ratio)
        for storage in self.storages:
            SessionConfig(storage=storage, allocation=self.allocation)  # type: ignore[arg-type]
        require(
            len(self.user_tokens) == len(self.reply_tokens) > 0,
            f"{len(self.user_tokens)} user_tokens and {len(self.reply_tokens)} reply_tokens: give as many of each",
        )
        for user, reply in self.turns:
            require(user >= 1, f"user_tokens={user} must be at least 1")
            require(reply >= 2, f"reply_tokens={reply} must be at least 2")
            require(
                bool(self.lengths) and min(self.lengths, default=0) >= user + reply,
                f"lengths must be at least a turn ({user + reply} tokens)",
            )
        for name in ("batch", "repetitions"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")

    @property
    def turns(self) -> list[TurnTokens]:
        """The kinds of dialogue."""
        return [TurnTokens(*pair) for pair in zip(self.user_tokens, self.reply_tokens, strict=True)]


@dataclass(frozen=True)
class BenchBatchOptions:
    """How many dialogues decode at once, and how long they are."""

    shape: Shape | None = option(
        None, "random weights of this shape instead of a model: the same speed, nothing to download"
    )
    length: int = option(32768, "logical tokens of each dialogue")
    ratios: tuple[float, ...] = option((0.0, 0.5, 0.8, 0.9), "compression ratios; 0 is full context")
    max_batch: int = option(64, "most dialogues at once; fewer where memory ends")
    steps: int = option(8, "decode steps in one timing")
    seed: int = option(0, "seed of the random weights")

    def __post_init__(self) -> None:
        for ratio in self.ratios:
            Budget(compression_ratio=ratio)
        for name in ("length", "max_batch", "steps"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class BenchServeOptions:
    """The conversations that a server of each kind holds."""

    shape: Shape | None = option(
        None, "random weights of this shape instead of a model: the same speed, nothing to download"
    )
    length: int = option(4000, "logical tokens of each dialogue at its end")
    user_tokens: int = option(192, "tokens of each user message")
    reply_tokens: int = option(64, "tokens of each reply")
    dialogues: int = option(16, "dialogues at a time")
    ratio: float = option(0.8, "compression ratio")
    kv_memory: str = option("256MiB", "memory in which live dialogues are counted")
    repetitions: int = option(2, "times that the dialogues are lived through")
    seed: int = option(0, "seed of the texts and of random weights")
    out: str | None = option(None, "folder for result.json, report.md and plot.svg; none: the report alone")

    def __post_init__(self) -> None:
        Budget(compression_ratio=self.ratio)
        require(parse_bytes(self.kv_memory) > 0, "kv_memory must be above 0")
        for name in ("user_tokens", "reply_tokens", "dialogues", "repetitions"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        turn = self.user_tokens + self.reply_tokens
        require(self.length >= turn, f"length={self.length} must be at least a turn ({turn} tokens)")


@dataclass(frozen=True)
class BenchSoakOptions:
    """What a server has to endure, and for how long."""

    minutes: float = option(30.0, "how long requests are sent; comparing the replies takes as long again")
    dialogues: int = option(200, "dialogues that are alive at a time; whoever leaves is replaced")
    clients: int = option(24, "requests under way at a time, so that some must wait")
    kv_memory: str = option("48MiB", "the server's limit: most dialogues should not fit")
    max_tokens: int = option(1500, "tokens at which a dialogue is over")
    reply_tokens: int = option(24, "longest reply")
    checked: float = option(1.0, "share of the dialogues whose replies are compared with a fresh run's")
    seed: int = option(0, "seed of what is said and done")
    out: str | None = option(None, "folder for result.json and report.md; none: the report alone")

    def __post_init__(self) -> None:
        require(0.0 < self.minutes < inf, f"minutes={self.minutes} must be above 0")
        require(0.0 <= self.checked <= 1.0, f"checked={self.checked} is outside [0, 1]")
        require(parse_bytes(self.kv_memory) > 0, "kv_memory must be above 0")
        require(
            self.dialogues > self.clients >= 1,
            f"dialogues={self.dialogues} must be more than clients={self.clients}",
        )
        for name in ("max_tokens", "reply_tokens"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
