"""Options of evaluation."""

from dataclasses import dataclass
from typing import Literal

from sonic_kv.options import Options, option, require


@dataclass(frozen=True)
class EvalOptions(Options):
    """What is evaluated, on what, and where the results are kept."""

    out: str = option("runs/eval", "folder of the results; a run that was stopped goes on in it")
    suites: tuple[str, ...] = option(
        (), "suites to run, beside those of --data; without either: synthetic; an unknown name lists them all"
    )
    data: tuple[str, ...] = option((), "files: any dialogues (mine.jsonl), or NAME=PATH of a known suite")
    methods: tuple[str, ...] = option((), "methods to compare; without it: the usual ones that can run here")
    ratios: tuple[float, ...] = option((0.5, 0.8, 0.9), "compression ratios", least=0.0, below=1.0)
    max_damages: tuple[float, ...] = option(
        (),
        "predicted damages to compare at besides, in nats a later token (the adapter's methods only)",
        above=0.0,
    )
    limit: int = option(48, "dialogues of each suite, evenly over its file; 0: all", least=0)
    seed: int = option(77, "seed of the synthetic dialogues and of the bootstrap", flag=False)
    exchanges: int = option(14, "exchanges of each synthetic dialogue", least=1, flag=False)
    max_tokens: int = option(
        1024, "longest dialogue in tokens; longer ones are cut after an exchange", least=1
    )
    batch_size: int = option(
        64,
        "rows read side by side; a row is a dialogue under one method at one ratio; 1: one after the other",
        least=1,
    )
    workers: int = option(1, "processes of one thread each, for small models on a CPU; 1: this one", least=1)
    generate: Literal["none", "questions", "replies"] = option(
        "none",
        "let the model write replies itself: to questions whose answer can be checked, or to all that is scored",
    )
    max_new_tokens: int | None = option(
        None, "longest of these replies, in tokens; without it: as long as the suite's answers need", least=1
    )
    judge_url: str | None = option(
        None,
        "OpenAI-compatible endpoint (http://host:port/v1) that scores written replies; without it: no judge",
    )
    judge_model: str | None = option(
        None, "name of the judge's model; without it: the first one the endpoint lists"
    )
    judge_key: str = option("OPENAI_API_KEY", "environment variable with the endpoint's key", flag=False)
    judge_timeout: float = option(120.0, "seconds to wait for a verdict", above=0.0, flag=False)

    def check(self) -> None:
        require(
            self.judge_url is None or self.generate != "none",
            "a judge scores replies that the model writes: add --generate replies",
        )
        require(all(self.ratios), "ratio 0 removes nothing: that is the method 'full'")
