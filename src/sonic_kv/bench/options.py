"""Options of the benchmarks."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from sonic_kv.compress.options import Allocation
from sonic_kv.options import Options, option, require, share

BenchMethod = Literal["full", "re-prefilled", "few-bits", "streaming", "sonic"]
Shape = Literal["smollm2-135m", "qwen3-0.6b", "qwen3-1.7b", "qwen2.5-7b", "llama-8b"]
BENCH_METHODS: tuple[BenchMethod, ...] = get_args(BenchMethod)


@dataclass(frozen=True)
class BenchTrainingOptions(Options):
    """A training step that is timed."""

    shape: Shape | None = option(None, "random weights of a known shape, instead of a model")
    batch_size: int = option(4, "dialogues of the step", least=1)
    exchanges: int = option(16, "exchanges of every dialogue", least=2, flag=False)
    lora_rank: int = option(16, "rank of the adapter's LoRA", least=1, flag=False)
    repetitions: int = option(10, "paired repetitions", least=2)
    seed: int = option(0, "seed of dialogues and budgets", least=0, flag=False)


@dataclass(frozen=True)
class BenchClosingOptions(Options):
    """What is timed."""

    history: int = option(1024, "tokens of closed history", least=5)
    segment: int = option(128, "tokens of the segment that is closed", least=1, flag=False)
    ratio: float = option(0.8, "compression ratio", least=0.0, below=1.0)
    steps: int = option(16, "decode steps in one timing", least=1, flag=False)
    repetitions: int = option(30, "pairs of timings", least=2)
    seed: int = option(0, "seed of the random tokens", flag=False)


class TurnTokens(NamedTuple):
    """Tokens of a turn."""

    user: int
    reply: int

    def __str__(self) -> str:
        return f"{self.user} user and {self.reply} reply tokens"


@dataclass(frozen=True)
class BenchDialogueOptions(Options):
    """The dialogue, and the ways to keep its history."""

    shape: Shape | None = option(
        None, "random weights of this shape instead of a model: the same speed, nothing to download"
    )
    lengths: tuple[int, ...] = option(
        (1024, 4096, 8192), "logical tokens at which figures are taken", least=1, filled=True
    )
    user_tokens: tuple[int, ...] = option(
        (64,),
        "tokens of each user message; with several numbers, a dialogue of each kind (give as many reply lengths)",
        least=1,
    )
    reply_tokens: tuple[int, ...] = option((192,), "tokens of each reply", least=2)
    methods: tuple[BenchMethod, ...] = option(
        BENCH_METHODS,
        "ways to keep history: full context (kept, or re-prefilled at every turn), kept in 8 and in 4 bits between "
        "turns (few-bits), the first and newest entries (streaming), this project's (sonic)",
        filled=True,
    )
    ratios: tuple[float, ...] = option(
        (0.5, 0.8, 0.9), "compression ratios of those that compress", least=0.0, below=1.0
    )
    bits: tuple[int, ...] = option(
        (0,), "bits of a number in sonic's memory between turns: 8 or 4; 0: as computed", filled=True
    )
    allocation: Allocation = option("shared", "how sonic shares its budget; shared reads heads one by one")
    refit: bool = option(False, "sonic refits the values of kept entries", flag=False)
    batch: tuple[int, ...] = option(
        (1,), "dialogues at a time; with several numbers, each", least=1, filled=True
    )
    timed: int = option(
        4, "how many turns are timed up to each length; the others are read in untimed; 0: all", least=0
    )
    against: str | None = option(
        None,
        "URL of another engine with OpenAI's API, as vLLM's or llama.cpp's server: it plays the same dialogues",
    )
    repetitions: int = option(3, "how often each dialogue is run", least=1)
    seed: int = option(0, "seed of the random tokens and weights", flag=False)
    out: str | None = option(
        None, "folder for result.json, report.md and plot.svg; without it: the report alone"
    )

    def check(self) -> None:
        for bits in self.bits:
            require(bits in (0, 4, 8), f"bits={bits} must be 0, 4 or 8")
        require(
            len(self.user_tokens) == len(self.reply_tokens) > 0,
            f"{len(self.user_tokens)} user_tokens and {len(self.reply_tokens)} reply_tokens: give as many of each",
        )
        longest = max(map(sum, self.turns))
        require(min(self.lengths) >= longest, f"lengths must be at least a turn ({longest} tokens)")

    @property
    def turns(self) -> list[TurnTokens]:
        """The kinds of dialogue."""
        return [TurnTokens(*pair) for pair in zip(self.user_tokens, self.reply_tokens, strict=True)]


@dataclass(frozen=True)
class BenchBatchOptions(Options):
    """How many dialogues decode at once, and how long they are."""

    shape: Shape | None = option(
        None, "random weights of this shape instead of a model: the same speed, nothing to download"
    )
    length: int = option(32768, "logical tokens of each dialogue", least=1)
    ratios: tuple[float, ...] = option(
        (0.0, 0.5, 0.8, 0.9), "compression ratios; 0 is full context", least=0.0, below=1.0
    )
    max_batch: int = option(64, "most dialogues at once; fewer where memory ends", least=1)
    steps: int = option(8, "decode steps in one timing", least=1)
    seed: int = option(0, "seed of the random weights", flag=False)


@dataclass(frozen=True)
class BenchServeOptions(Options):
    """The conversations that a server of each kind holds."""

    shape: Shape | None = option(
        None, "random weights of this shape instead of a model: the same speed, nothing to download"
    )
    length: int = option(4000, "logical tokens of each dialogue at its end", least=1)
    user_tokens: int = option(192, "tokens of each user message", least=1, flag=False)
    reply_tokens: int = option(64, "tokens of each reply", least=1, flag=False)
    dialogues: int = option(16, "dialogues at a time", least=1)
    ratio: float = option(0.8, "compression ratio", least=0.0, below=1.0)
    kv_memory: str = option("256MiB", "memory in which live dialogues are counted", size=True)
    repetitions: int = option(2, "how often the dialogues are run", least=1)
    seed: int = option(0, "seed of the texts and of random weights", flag=False)
    out: str | None = option(
        None, "folder for result.json, report.md and plot.svg; without it: the report alone"
    )

    def check(self) -> None:
        turn = self.user_tokens + self.reply_tokens
        require(self.length >= turn, f"length={self.length} must be at least a turn ({turn} tokens)")


@dataclass(frozen=True)
class BenchSoakOptions(Options):
    """What a server has to endure, and for how long."""

    minutes: float = option(
        30.0, "how long requests are sent; comparing the replies takes as long again", above=0.0
    )
    dialogues: int = option(200, "dialogues that are alive at a time; whoever leaves is replaced", least=1)
    clients: int = option(24, "requests under way at a time, so that some must wait", least=1)
    kv_memory: str = option("48MiB", "the server's limit: most dialogues should not fit", size=True)
    max_tokens: int = option(1500, "tokens at which a dialogue is over", least=1, flag=False)
    reply_tokens: int = option(24, "longest reply", least=1, flag=False)
    checked: float = share(
        1.0, "share of the dialogues whose replies are compared with a fresh run's", flag=False
    )
    seed: int = option(0, "seed of what is said and done", flag=False)
    out: str | None = option(None, "folder for result.json and report.md; without it: the report alone")

    def check(self) -> None:
        require(
            self.dialogues > self.clients,
            f"dialogues={self.dialogues} must be more than clients={self.clients}",
        )


@dataclass(frozen=True)
class DemoOptions(Options):
    """What is replayed."""

    dialogue: str | None = option(
        None,
        "file of dialogues: JSON lines of messages, ShareGPT, Parquet, …; without it: five that ship with the package",
    )
    dialogues: int = option(5, "how many dialogues; the first is shown in full", least=1)
    ratios: tuple[float, ...] = option((0.8, 0.9), "compression ratios to compare", least=0.0, below=1.0)
    max_new_tokens: int = option(20, "longest answer, in tokens", least=1)
    html: str = option("demo.html", "page to write; an empty text: none")
