"""Options of evaluation."""

from dataclasses import dataclass
from typing import Literal

from sonic_kv.compress.options import Budget
from sonic_kv.options import option, require


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
