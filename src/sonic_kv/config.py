"""Every option of the library, as frozen dataclasses: each default is written here and nowhere else.

No heavy imports: the command line builds its flags from these classes without loading torch.
Each field carries its help text in `metadata["help"]`.
"""

import dataclasses
import re
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Literal, NamedTuple

from sonic_kv.errors import BudgetError, ConfigError

Form = Literal["anchored", "learned"]
Scope = Literal["causal", "segment"]
Positions = Literal["original", "compact"]
Allocation = Literal["pooled", "global", "segment"]
Storage = Literal["full", "int8", "int4"]
Closing = Literal["turn", "idle"]
Engine = Literal["local", "vllm", "ray"]
Quantization = Literal["nf4", "fp4"]
Shape = Literal["qwen3-0.6b", "qwen3-1.7b", "qwen2.5-7b", "llama-8b"]
BENCH_METHODS = ("full", "re-prefilled", "streaming", "h2o", "sonic")


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class Budget:
    """What limits the compressed cache: one of a ratio, a number of entries, a number of bytes.

    With none of them nothing is removed, and the cache is the base model's own.
    An entry is one key and one value in every layer and KV head.
    """

    compression_ratio: float | None = option(
        None, "fraction of the compressible history's entries that is removed (0.8 keeps one fifth)"
    )
    max_entries: int | None = option(
        None, "entries (prefix and memory) the cache may hold once a segment is closed"
    )
    max_bytes: int | None = option(
        None, "bytes (prefix and memory) the cache may hold once a segment is closed"
    )

    def __post_init__(self) -> None:
        given = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]
        if len(given) > 1:
            raise BudgetError(f"a budget is one of {' or '.join(given)}, not both: leave one out")
        ratio = self.compression_ratio
        if ratio is not None and not (isinstance(ratio, (int, float)) and 0.0 <= ratio < 1.0):
            raise BudgetError(
                f"compression_ratio={ratio!r} is outside [0, 1): 0.8 keeps one fifth of the history"
            )
        for name in ("max_entries", "max_bytes"):
            limit = getattr(self, name)
            if limit is not None and not (type(limit) is int and limit >= 1):
                raise BudgetError(f"{name}={limit!r} must be a whole number, at least 1")


DEFAULT_BUDGET = Budget(compression_ratio=0.8)


@dataclass(frozen=True)
class SessionConfig:
    """How a session cuts its dialogue into segments and what it keeps of each."""

    min_segment_tokens: int = option(32, "exchanges are grouped until a segment has this many tokens")
    max_segment_tokens: int = option(
        512, "with a budget, a longer exchange is split into segments of this many"
    )
    positions: Positions = option(
        "original", "key positions of kept entries: the transcript's (original) or consecutive (compact)"
    )
    allocation: Allocation = option(
        "pooled",
        "all layers and heads share one total (pooled; with compact positions or learned Nexus tokens: global), or "
        "each has as many entries, chosen over the whole history (global) or over each segment's share (segment)",
    )
    reencode: bool = option(
        True, "re-encode kept entries with the adapter; off: plain selection, no extra forward"
    )
    candidates: float = option(
        1.0, "tokens re-encoded per entry that a head keeps of a segment, on average; the others stay raw"
    )
    window: int = option(16, "recent queries observed for importance when there is no adapter")
    storage: Storage = option(
        "full", "numbers of kept entries between two calls: as computed (full), or rounded to 8 or 4 bits"
    )
    closing: Closing = option(
        "turn", "close a segment when its exchange ends (turn), or when close_pending() is called (idle)"
    )

    def __post_init__(self) -> None:
        require(
            self.min_segment_tokens >= 1, f"min_segment_tokens={self.min_segment_tokens} must be at least 1"
        )
        require(
            self.max_segment_tokens >= self.min_segment_tokens,
            f"max_segment_tokens={self.max_segment_tokens} is below min_segment_tokens={self.min_segment_tokens}",
        )
        require(1.0 <= self.candidates < inf, f"candidates={self.candidates} must be at least 1, and finite")
        require(self.window >= 1, f"window={self.window} must be at least 1")
        require(
            self.positions in ("original", "compact"), f"positions={self.positions!r}: original or compact"
        )
        require(
            self.allocation in ("pooled", "global", "segment"),
            f"allocation={self.allocation!r}: pooled, global or segment",
        )
        require(self.storage in ("full", "int8", "int4"), f"storage={self.storage!r}: full, int8 or int4")
        require(
            self.storage == "full" or self.positions == "original",
            f"storage={self.storage!r} needs positions='original': compact ones round every entry again and again",
        )
        require(self.closing in ("turn", "idle"), f"closing={self.closing!r}: turn or idle")

    @property
    def bits(self) -> int | None:
        """Bits of a stored number; None: as computed."""
        return {"int8": 8, "int4": 4}.get(self.storage)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen and when a reply ends."""

    max_new_tokens: int = option(128, "longest reply, in tokens")
    temperature: float = option(0.0, "0 is greedy")
    top_p: float = option(1.0, "nucleus sampling: smallest set of tokens with this probability")
    stop: tuple[str, ...] = option((), "texts that end the reply (they are not part of it)")
    seed: int | None = option(None, "seed of the sampling; none: a new one each time")

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1")
        require(
            0.0 <= self.temperature < inf, f"temperature={self.temperature} must be finite, and not negative"
        )
        require(0.0 < self.top_p <= 1.0, f"top_p={self.top_p} is outside (0, 1]")
        require(not isinstance(self.stop, str), "stop takes a tuple of texts: stop=('END',)")
        require(all(self.stop), "a stop text must not be empty")
        require(self.seed is None or 0 <= self.seed < 1 << 63, f"seed={self.seed} is outside [0, 2**63)")


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter: what is trained beside the frozen base."""

    form: Form = option(
        "anchored", "a Nexus token starts as a raw token (anchored) or as an embedding (learned)"
    )
    scope: Scope = option(
        "causal", "an anchored Nexus token sees its segment up to its anchor (causal) or whole"
    )
    lora_rank: int = option(
        16, "rank of the conditional LoRA; 0: importance only, entries are not re-encoded"
    )
    lora_alpha: int = option(32, "LoRA scale is alpha / rank")
    scorer_hidden: int = option(64, "width of the importance scorer's hidden layer")
    turn_classes: int = option(8, "classes of the turn embedding (learned form): segments 1, 2–3, 4–7, …")

    def __post_init__(self) -> None:
        require(self.form in ("anchored", "learned"), f"form={self.form!r}: anchored or learned")
        require(self.scope in ("causal", "segment"), f"scope={self.scope!r}: causal or segment")
        require(self.lora_rank >= 0, f"lora_rank={self.lora_rank} must not be negative")
        require(
            self.form == "anchored" or self.lora_rank > 0,
            "form='learned' needs lora_rank >= 1: a learned Nexus token has no raw entry to fall back on",
        )
        require(self.scorer_hidden >= 1, f"scorer_hidden={self.scorer_hidden} must be at least 1")
        require(self.turn_classes >= 1, f"turn_classes={self.turn_classes} must be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """One training run of an adapter: data, schedule, files."""

    out: str = option("runs/adapter", "folder of checkpoints, log and the finished adapter")
    data: tuple[str, ...] = option(
        (), "dialogues: .jsonl or .jsonl.gz files, folders of a saved dataset, or hub ids of datasets"
    )
    data_weights: tuple[float, ...] = option((), "share of each of them, in any unit; none: by their sizes")
    data_share: float = option(0.5, "share of the dialogues that come from them (0: synthetic only)")
    skip_malformed: bool = option(True, "leave malformed lines of files out, and count them; off: stop there")
    token_cache: str = option("runs/tokens", "folder that keeps tokenised files for the next run")
    validation_data: tuple[str, ...] = option(
        (), "dialogues to measure recovery on, in place of synthetic ones"
    )
    validation_dialogues: int = option(16, "dialogues to measure recovery on")
    validate_every: int = option(
        0, "steps between measurements; the best adapter is kept; 0: the last one is"
    )
    max_steps: int = option(1000, "optimiser steps")
    batch_size: int = option(4, "dialogues per step, over all processes together")
    max_tokens: int = option(768, "longest dialogue in tokens; longer ones are cut")
    pack_tokens: int = option(0, "pack dialogues into one forward of up to this many tokens; 0: one by one")
    calibration_rounds: int = option(
        12,
        "rounds in which heads are made comparable when the scorer has been trained; it then stays as it is",
    )
    calibration_dialogues: int = option(48, "dialogues to do it on; a round looks at a third of them")
    importance_steps: int | None = option(
        None, "first steps, on the scorer alone (no student forward); none: three fifths of max_steps"
    )
    lr: float = option(1e-3, "peak learning rate of LoRA and embeddings")
    scorer_lr: float = option(2e-3, "peak learning rate of the importance scorer")
    warmup_steps: int = option(20, "linear warm-up of what is trained; its rate then falls linearly to zero")
    grad_clip: float = option(1.0, "largest gradient norm")
    bf16: bool | None = option(
        None, "bf16 autocast; none: where the device has instructions for bf16 products"
    )
    gradient_checkpointing: bool = option(False, "run layers again in the backward pass: less memory, slower")
    attention: Literal["auto", "sdpa", "flex"] = option(
        "auto", "SDPA in blocks of rows, FlexAttention with a block mask, or by device (auto)"
    )
    shard_base: bool = option(
        False,
        "shard the frozen base's layers over the processes (FSDP2), as an FSDP file of accelerate does too",
    )
    tensorboard: bool = option(False, "write TensorBoard files beside log.jsonl")
    seed: int = option(0, "seed of data, budgets and initialisation")
    log_every: int = option(10, "steps between lines of log.jsonl")
    save_every: int = option(100, "steps between checkpoints")

    def __post_init__(self) -> None:
        require(0.0 <= self.data_share <= 1.0, f"data_share={self.data_share} is outside [0, 1]")
        require(
            len(self.data_weights) in (0, len(self.data)),
            f"data_weights has {len(self.data_weights)} numbers for {len(self.data)} sources: give one each",
        )
        require(
            all(0.0 <= w < inf for w in self.data_weights)
            and (not self.data_weights or any(self.data_weights)),
            "data_weights must be finite and not negative, and not all 0",
        )
        require(
            self.attention in ("auto", "sdpa", "flex"), f"attention={self.attention!r}: auto, sdpa or flex"
        )
        for name in ("lr", "scorer_lr", "grad_clip"):
            require(
                0.0 < getattr(self, name) < inf, f"{name}={getattr(self, name)} must be above 0, and finite"
            )
        for name in ("max_steps", "batch_size", "log_every", "save_every", "validation_dialogues"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(self.scorer_alone >= 0, f"importance_steps={self.importance_steps} must not be negative")
        for name in (
            "calibration_rounds",
            "warmup_steps",
            "validate_every",
            "pack_tokens",
            "seed",
        ):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        require(self.max_tokens >= 4, f"max_tokens={self.max_tokens} must be at least 4")
        require(
            self.calibration_dialogues >= 3,
            f"calibration_dialogues={self.calibration_dialogues} must be at least 3",
        )

    @property
    def scorer_alone(self) -> int:
        """Steps on the scorer alone."""
        return 3 * self.max_steps // 5 if self.importance_steps is None else self.importance_steps


@dataclass(frozen=True)
class LossConfig:
    """What is trained towards: each loss by its weight (0: off, and not computed)."""

    importance_weight: float = option(1.0, "scorer: cross-entropy to what later turns attend to")
    importance_queries: int = option(64, "later queries sampled per dialogue as the scorer's target")
    importance_norm: float = option(
        4.0, "how its later queries add up: 1 is their mean, inf their maximum, between them a power mean"
    )
    importance_need: float = option(
        1.0, "queries count by this power of how much their next token needs the history; 0: all alike"
    )
    distillation_weight: float = option(1.0, "KL to the full-context base")
    forward_kl: float = option(0.7, "share of forward KL in it; the rest is reverse KL")
    distillation_need: float = option(0.0, "weigh its tokens by exp of their need of the history, up to this")
    ce_weight: float = option(0.0, "cross-entropy on assistant tokens, weighted by their need of the history")
    ce_need: float = option(3.0, "largest log weight of a token in it")
    attention_weight: float = option(0.0, "KL of the attention mass per segment to the base's")
    output_weight: float = option(0.0, "squared error of attention outputs, relative to the base's")
    ignored_weight: float = option(0.0, "penalty where a segment's entries get less than ignored_share")
    ignored_share: float = option(0.5, "of the attention mass that the segment has in the base")
    coverage_weight: float = option(0.0, "KL of what Nexus tokens look at to what later turns look at")
    reconstruction_weight: float = option(
        0.0, "cross-entropy of a segment repeated from its kept entries alone"
    )
    observed_queries: int = option(64, "later rows observed per dialogue for the attention losses")
    observed_layers: int = option(2, "layers observed for them, drawn at every step")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name.endswith(("_weight", "_need")):
                value = getattr(self, field.name)
                require(0.0 <= value < inf, f"{field.name}={value} must be finite, and not negative")
        require(0.0 <= self.forward_kl <= 1.0, f"forward_kl={self.forward_kl} is outside [0, 1]")
        require(0.0 <= self.ignored_share <= 1.0, f"ignored_share={self.ignored_share} is outside [0, 1]")
        require(self.importance_norm >= 1.0, f"importance_norm={self.importance_norm} must be at least 1")
        for name in ("importance_queries", "observed_queries", "observed_layers"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class PlanConfig:
    """How budgets, segments and exceptions are drawn while training, anew for every dialogue."""

    ratio_min: float = option(0.3, "lowest compression ratio of a dialogue")
    ratio_max: float = option(0.97, "highest compression ratio")
    ratio_jitter: float = option(0.1, "at every closing the ratio moves by up to this")
    shrink_share: float = option(0.0, "share of dialogues whose budget is lowered for good at some closing")
    random_share: float = option(0.0, "share of dialogues whose budget is shared among segments at random")
    segment_share: float = option(
        0.1, "share of dialogues whose budget is shared by the segments' importance"
    )
    pooled_share: float = option(0.7, "share of dialogues whose budget all layers and heads share")
    raw_share: float = option(0.1, "share of closed segments whose kept entries are not re-encoded")
    candidates: tuple[float, ...] = option(
        (1.0, 2.0, 4.0), "tokens re-encoded per kept entry, one drawn a segment"
    )
    noise: tuple[float, ...] = option(
        (0.0, 0.0, 0.5), "Gumbel noise on the scores, one drawn a dialogue: random elastic subsets"
    )
    group_tokens: tuple[int, ...] = option((1, 16, 48, 96), "exchanges are grouped up to one of these sizes")
    split_tokens: tuple[int, ...] = option((96, 192, 512), "segments are split at one of these sizes")

    def __post_init__(self) -> None:
        require(0.0 <= self.ratio_min <= self.ratio_max < 1.0, "ratios need 0 <= ratio_min <= ratio_max < 1")
        for name in (
            "ratio_jitter",
            "shrink_share",
            "random_share",
            "segment_share",
            "pooled_share",
            "raw_share",
        ):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name}={getattr(self, name)} is outside [0, 1]")
        require(
            self.random_share + self.segment_share + self.pooled_share <= 1.0,
            "random_share + segment_share + pooled_share must not pass 1",
        )
        for name in ("candidates", "noise", "group_tokens", "split_tokens"):
            require(len(getattr(self, name)) > 0, f"{name} is empty: give at least one number")
        require(all(1.0 <= c < inf for c in self.candidates), "candidates must be at least 1, and finite")
        require(all(0.0 <= n < inf for n in self.noise), "noise must be finite, and not negative")
        require(
            all(g >= 1 for g in self.group_tokens) and max(self.group_tokens) <= min(self.split_tokens),
            "sizes need 1 <= group_tokens <= split_tokens",
        )


@dataclass(frozen=True)
class SynthConfig:
    """Which synthetic dialogues are generated, and what is in them."""

    dialogues: int = option(10_000, "how many dialogues")
    split: Literal["train", "validation", "test"] = option("train", "splits share no wording and no entity")
    seed: int = option(0, "seed of the dialogues")
    min_exchanges: int = option(4, "fewest exchanges of a dialogue")
    max_exchanges: int = option(12, "most exchanges of a dialogue")
    min_distance: int = option(1, "fewest exchanges from a fact to its question")
    max_distance: int = option(64, "most exchanges from a fact to its question")
    question_share: float = option(0.5, "share of the exchanges that ask, where there is a fact to ask for")
    fact_share: float = option(0.7, "share of the other exchanges that state a fact; the rest is chatter")
    update_share: float = option(0.12, "share of the stated facts that change an earlier one")
    coreference_share: float = option(0.15, "share of facts followed by a second one about 'she' or 'he'")
    system_share: float = option(0.4, "share of dialogues with a system prompt")
    chatter_sentences: int = option(2, "most sentences of a chatter message")
    count_share: float = option(0.15, "share of the stated facts that start or change a running count")
    instruction_share: float = option(0.15, "share of dialogues with a standing instruction")
    secret_share: float = option(0.4, "share of codes and passwords that the user later declares secret")
    script_share: float = option(0.05, "share of composed names in other scripts than the Latin one")
    noise_share: float = option(0.3, "share of training sentences with words left out and put in")
    pair_share: float = option(0.15, "share of training messages that state a fact beside their own matter")
    aside_share: float = option(
        0.15, "share of training messages of facts and questions that hold chatter too"
    )
    self_share: float = option(0.25, "share of training facts about people that are about the user")
    casual_share: float = option(0.15, "share of training messages that are typed in a hurry: what's, I'm")
    unnamed_share: float = option(0.15, "share of training people who are known by relation only")

    def __post_init__(self) -> None:
        require(self.dialogues >= 0, f"dialogues={self.dialogues} must not be negative")
        require(
            self.split in ("train", "validation", "test"), f"split={self.split!r}: train, validation or test"
        )
        require(
            1 <= self.min_exchanges <= self.max_exchanges,
            "exchanges need 1 <= min_exchanges <= max_exchanges",
        )
        require(
            1 <= self.min_distance <= self.max_distance, "distances need 1 <= min_distance <= max_distance"
        )
        for name in (f.name for f in fields(self) if f.name.endswith("_share")):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name}={getattr(self, name)} is outside [0, 1]")
        require(self.chatter_sentences >= 1, f"chatter_sentences={self.chatter_sentences} must be at least 1")


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


_UNITS = {"B": 1, **{p + "B": 1000**i for i, p in enumerate("kMGT", 1)}}
_UNITS |= {p + "iB": 1024**i for i, p in enumerate("KMGT", 1)}


def parse_bytes(text: str) -> int:
    """`"2GiB"` → 2147483648; also kB, MB, GB (powers of 1000), KiB, MiB, or a plain number of bytes.

    Raises:
        ConfigError: it is no such text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kKMGT]?i?B)?", text.strip())
    if match is None or (match[2] or "B") not in _UNITS:
        raise ConfigError(f"{text!r} is no number of bytes: write 2GiB, 500MB or 1000000")
    return int(float(match[1]) * _UNITS[match[2] or "B"])


@dataclass(frozen=True)
class ServeOptions:
    """Where the server listens, and what it may use."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in: set API keys then")
    port: int = option(8000, "port to listen on; 0: any free one")
    api_keys: str | None = option(
        None,
        "file of API keys, one a line; SONIC_KV_API_KEYS (separated by commas) adds to it; none: open to all",
    )
    cors_origins: tuple[str, ...] = option((), "origins whose pages may call this server from a browser")
    kv_memory: str = option("2GiB", "keys and values of all dialogues together stay below this")
    max_batch: int = option(16, "replies made at the same time")
    max_waiting: int = option(64, "requests that may wait; more are refused with 503")
    max_waiting_per_key: int = option(32, "requests of one API key that may wait; more are refused with 429")
    queue_timeout: float = option(
        60.0, "seconds a request may wait to be taken up; then it is refused with 503"
    )
    slice_tokens: int = option(256, "tokens fed at once between two decode steps of the other dialogues")
    max_body: str = option("4MiB", "largest request body")
    max_reply_tokens: int = option(4096, "most tokens that a request may ask for")
    min_compression_ratio: float = option(
        0.0, "a request that asks for less compression than this gets this much"
    )
    pressure_ratio: float | None = option(
        None, "before idle dialogues leave memory, compress them to this ratio; none: they leave as they are"
    )
    store: str = option(
        "~/.cache/sonic-kv/sessions", "where dialogues are kept: a folder, an fsspec URL, redis://…, or none"
    )
    store_after: float = option(5.0, "seconds until an idle dialogue's cache is written to the store")
    store_ttl: float = option(7 * 86400.0, "seconds after which an unused dialogue is forgotten")
    store_bytes: str = option("10GiB", "size of the store; beyond it the oldest dialogues are forgotten")
    engine: Engine = option(
        "local",
        "what serves: this process (local), this process while a vLLM server decodes (vllm), or replicas of it (ray)",
    )
    vllm_url: str | None = option(None, "the vLLM server that engine=vllm decodes on, as http://host:port")
    vllm_folder: str = option(
        "~/.cache/sonic-kv/exports",
        "where vLLM reads exported sessions, as its connector is told; unused ones go as in the store",
    )
    vllm_timeout: float = option(120.0, "seconds without a sign from vLLM after which a reply fails")

    def __post_init__(self) -> None:
        for name in ("kv_memory", "max_body", "store_bytes"):
            require(parse_bytes(getattr(self, name)) > 0, f"{name} must be above 0")
        for name in ("max_batch", "max_waiting", "max_waiting_per_key", "slice_tokens", "max_reply_tokens"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("queue_timeout", "store_ttl", "vllm_timeout"):
            require(0.0 < getattr(self, name) < inf, f"{name}={getattr(self, name)} must be above 0")
        require(self.store_after >= 0.0, f"store_after={self.store_after} must not be negative")
        require(0 <= self.port < 1 << 16, f"port={self.port} is outside [0, 65535]")
        require(self.engine in ("local", "vllm", "ray"), f"engine={self.engine!r}: local, vllm or ray")
        require(
            self.engine != "ray" or self.store != "none",
            "engine ray needs a store that all replicas reach: a dialogue outlives its replica there",
        )
        Budget(compression_ratio=self.min_compression_ratio)
        Budget(compression_ratio=self.pressure_ratio)
        url = self.vllm_url
        require(
            url is None or url.startswith(("http://", "https://")),
            f"vllm_url={url!r} must be http://host:port",
        )
        require((self.engine == "vllm") == (url is not None), "engine='vllm' and vllm_url go together")


@dataclass(frozen=True)
class RayOptions:
    """Replicas of the server on Ray Serve; each has the model and all limits of the server to itself."""

    replicas: int = option(1, "replicas of the server; the fewest, if there may be more")
    max_replicas: int | None = option(
        None,
        "add replicas under load, up to this many, and take them away later; none: always the same number",
    )
    target_ongoing_requests: float = option(8.0, "requests in hand per replica above which one is added")
    replica_cpus: float = option(1.0, "CPU cores that Ray sets aside for a replica; also its threads")
    replica_gpus: float = option(0.0, "GPUs that Ray sets aside for a replica; with --device cuda usually 1")
    ray_address: str = option(
        "local", "local: a Ray of its own on this machine; auto or HOST:PORT: a cluster that runs already"
    )

    def __post_init__(self) -> None:
        require(self.replicas >= 1, f"replicas={self.replicas} must be at least 1")
        require(
            self.max_replicas is None or self.max_replicas >= self.replicas,
            f"max_replicas={self.max_replicas} is below replicas={self.replicas}",
        )
        for name in ("target_ongoing_requests", "replica_cpus"):
            require(0.0 < getattr(self, name) < inf, f"{name}={getattr(self, name)} must be above 0")
        require(0.0 <= self.replica_gpus < inf, f"replica_gpus={self.replica_gpus} must not be negative")


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
class EvalOptions:
    """What is evaluated, on what, and where the results are kept."""

    out: str = option("runs/eval", "folder of the results; a run that was stopped goes on in it")
    benchmarks: tuple[str, ...] = option(("synthetic",), "benchmarks to run; an unknown name lists them")
    data: tuple[str, ...] = option((), "files of benchmarks, as NAME=PATH")
    methods: tuple[str, ...] = option((), "methods to compare; none: all that can run here but slow ones")
    ratios: tuple[float, ...] = option((0.5, 0.8, 0.9), "compression ratios")
    limit: int = option(200, "cases of each benchmark, evenly over its file; 0: all")
    seed: int = option(77, "seed of the synthetic dialogues and of the bootstrap")
    exchanges: int = option(14, "exchanges of each synthetic dialogue")
    max_tokens: int = option(1024, "longest dialogue in tokens; longer ones are cut behind an exchange")
    batch_size: int = option(
        64,
        "rows read side by side; a row is a dialogue under one method at one ratio; 1: one after the other",
    )
    workers: int = option(1, "processes of one thread each, for small models on a CPU; 1: this one")
    generate: Literal["none", "questions", "replies"] = option(
        "none",
        "replies that the model writes itself: to questions with a known answer, or all that are scored",
    )
    max_new_tokens: int = option(64, "longest of these replies, in tokens")
    judge_url: str | None = option(
        None, "OpenAI-compatible endpoint (http://host:port/v1) that scores written replies; none: no judge"
    )
    judge_model: str | None = option(
        None, "name of the judge's model; none: the first one the endpoint lists"
    )
    judge_key: str = option("OPENAI_API_KEY", "environment variable with the endpoint's key, if it wants one")
    judge_timeout: float = option(120.0, "seconds to wait for a verdict")

    def __post_init__(self) -> None:
        require(
            self.generate in ("none", "questions", "replies"),
            f"generate={self.generate!r}: none, questions or replies",
        )
        require(
            self.judge_url is None or self.generate != "none",
            "a judge scores replies that the model writes: add --generate replies",
        )
        for ratio in self.ratios:
            Budget(compression_ratio=ratio)
            require(ratio > 0.0, "ratio 0 removes nothing: that is the method 'full'")
        require(bool(self.benchmarks), "name at least one benchmark")
        require(self.limit >= 0, f"limit={self.limit} must not be negative")
        for name in ("exchanges", "max_tokens", "batch_size", "max_new_tokens", "workers"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")


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


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str | None = option(None, "base model: path or hub id; none: the default model")
    adapter: str | None = option(
        None, "adapter: path or hub id; none: the one in the model's local folder, if any"
    )
    device: str = option("cpu", "torch device")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "of the weights; none: as stored, on a CPU float32"
    )
    quantization: Quantization | None = option(
        None, "keep the base in four bits (nf4 or fp4; needs bitsandbytes); none: as it is"
    )


@dataclass(frozen=True)
class DecodeOptions:
    """How one dialogue is decoded."""

    compile: bool = option(
        False,
        "compile the decode step: small models decode faster, after up to a minute or more; needs a C++ compiler",
    )


@dataclass(frozen=True)
class ChatOptions:
    """The dialogue."""

    system: str | None = option(None, "system prompt")
    load: str | None = option(None, "go on with this saved session: it brings its system prompt and settings")


@dataclass(frozen=True)
class OutputOptions:
    """Where the result goes."""

    out: str | None = option(None, "file to write, compressed if it ends in .gz; none: standard output")


@dataclass(frozen=True)
class DemoOptions:
    """What is replayed."""

    dialogue: str | None = option(
        None, 'JSONL file, {"messages": [{"role", "content"}, ...]} a line; none: synthetic dialogues'
    )
    dialogues: int = option(6, "how many dialogues; the first is shown in full")
    exchanges: int = option(16, "exchanges of each synthetic dialogue")
    seed: int = option(0, "seed of the synthetic dialogues")
    ratios: tuple[float, ...] = option((0.5, 0.8, 0.9), "compression ratios to compare")
    max_new_tokens: int = option(32, "longest answer, in tokens")
    html: str = option("demo.html", "page to write; an empty text: none")

    def __post_init__(self) -> None:
        for name in ("dialogues", "exchanges", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for ratio in self.ratios:
            Budget(compression_ratio=ratio)
