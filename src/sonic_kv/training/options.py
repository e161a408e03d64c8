"""Options of training."""

from dataclasses import dataclass

from sonic_kv.options import Options, option, require, share


@dataclass(frozen=True)
class TrainConfig(Options):
    """One training run of an adapter: data, schedule, files."""

    out: str = option("runs/adapter", "folder of checkpoints, log and the finished adapter")
    data: tuple[str, ...] = option(
        (),
        "dialogues: files (JSON lines, ShareGPT, Parquet, …), folders of a saved dataset, hub ids of datasets",
    )
    data_weights: tuple[float, ...] = option(
        (), "share of each of them, in any unit; without it: by their sizes", least=0.0, flag=False
    )
    data_share: float = share(
        0.8, "share of the dialogues that come from them, if any are given; the others are synthetic"
    )
    skip_malformed: bool = option(
        True, "leave malformed rows of files out, and count them, instead of stopping there", flag=False
    )
    token_cache: str = option("runs/tokens", "folder that keeps tokenised files for the next run", flag=False)
    validation_data: tuple[str, ...] = option(
        (), "dialogues to measure recovery on, instead of synthetic ones"
    )
    validation_dialogues: int = option(16, "how many dialogues recovery is measured on", least=1, flag=False)
    validate_every: int = option(
        0,
        "steps between measurements of recovery; the best adapter is kept; 0: measure nothing and keep the last one",
        least=0,
    )
    scale_dialogues: int = option(
        24,
        "dialogues that tell, in the end, what the scores are worth in nats; 0: budgets in nats are not to be had",
        least=0,
        flag=False,
    )
    max_steps: int = option(320, "optimiser steps", least=1)
    reuse: int = option(
        5,
        "how often the scorer learns from a dialogue before the base reads the next ones",
        least=1,
        flag=False,
    )
    batch_size: int = option(4, "dialogues per step, over all processes together", least=1)
    max_tokens: int = option(768, "longest dialogue in tokens; longer ones are cut", least=4)
    pack_tokens: int = option(
        0, "pack dialogues into one forward of up to this many tokens; 0: one by one", least=0
    )
    importance_steps: int | None = option(
        None,
        "first steps, in which scores learn the damage of single drops; then they learn from what their choices cost, "
        "or a LoRA is trained; without it: four fifths, with a LoRA three",
        least=0,
    )
    lr: float = option(
        1e-3, "peak learning rate of what comes then: choice, or LoRA and embeddings", above=0.0
    )
    scorer_lr: float = option(3e-3, "peak learning rate of the importance scorer", above=0.0, flag=False)
    warmup_steps: int = option(
        10, "linear warm-up of what is trained; its rate then falls linearly to zero", least=0, flag=False
    )
    grad_clip: float = option(1.0, "largest gradient norm", above=0.0, flag=False)
    bf16: bool | None = option(
        None, "compute in bf16 (autocast); without it: only if the device has instructions for that"
    )
    gradient_checkpointing: bool = option(
        False, "compute layers again in the backward pass: less memory, slower"
    )
    shard_base: bool = option(
        False,
        "shard the frozen base's layers over the processes (FSDP2); an FSDP file of accelerate does the same",
        flag=False,
    )
    tensorboard: bool = option(False, "write TensorBoard files beside log.jsonl", flag=False)
    seed: int = option(0, "seed of data, budgets and initialisation", least=0)
    log_every: int = option(10, "steps between lines of log.jsonl", least=1, flag=False)
    save_every: int = option(50, "steps between checkpoints", least=1, flag=False)

    def check(self) -> None:
        require(
            len(self.data_weights) in (0, len(self.data)),
            f"data_weights has {len(self.data_weights)} numbers for {len(self.data)} sources: give one each",
        )
        require(not self.data_weights or any(self.data_weights), "data_weights must not be all 0")


@dataclass(frozen=True)
class PlanConfig(Options):
    """How budgets, segments and exceptions are drawn while training, anew for every dialogue."""

    ratio_min: float = option(0.3, "lowest compression ratio of a dialogue", least=0.0, below=1.0)
    ratio_max: float = option(0.97, "highest compression ratio", least=0.0, below=1.0)
    ratio_jitter: float = share(0.1, "at every closing the ratio moves by up to this")
    segment_share: float = share(0.1, "share of dialogues whose budget is shared by the segments' importance")
    shared_share: float = share(0.7, "share of dialogues whose budget all layers and heads share")
    raw_share: float = share(0.1, "share of closed segments whose kept entries are not re-encoded")
    candidates: tuple[float, ...] = option(
        (1.0, 2.0, 4.0), "tokens re-encoded per kept entry, one drawn a segment", least=1.0, filled=True
    )
    noise: tuple[float, ...] = option(
        (0.0, 0.0, 0.5),
        "Gumbel noise on the scores, one drawn a dialogue: random elastic subsets",
        least=0.0,
        filled=True,
    )
    group_tokens: tuple[int, ...] = option(
        (1, 16, 48, 96), "exchanges are grouped up to one of these sizes", least=1, filled=True
    )
    split_tokens: tuple[int, ...] = option(
        (96, 192, 512), "segments are split at one of these sizes", least=1, filled=True
    )

    def check(self) -> None:
        require(self.ratio_min <= self.ratio_max, "ratios need ratio_min <= ratio_max")
        require(
            self.segment_share + self.shared_share <= 1.0,
            "segment_share + shared_share must not pass 1",
        )
        require(max(self.group_tokens) <= min(self.split_tokens), "sizes need group_tokens <= split_tokens")
