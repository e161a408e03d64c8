"""Options of training."""

import dataclasses
from dataclasses import dataclass
from math import inf
from typing import Literal

from sonic_kv.options import option, require


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
