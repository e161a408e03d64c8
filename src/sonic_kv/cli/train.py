"""`sonic-kv train`: an adapter for a model."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonic_kv.cli.command import Call, Command, note
from sonic_kv.cli.loading import load_model
from sonic_kv.data.options import SynthConfig
from sonic_kv.model.options import AdapterConfig, ModelOptions
from sonic_kv.text import Progress
from sonic_kv.training.options import PlanConfig, TrainConfig

if TYPE_CHECKING:
    from sonic_kv.model.encoded import Encoded
    from sonic_kv.model.model import SonicModel

SHOWN = ("importance", "choice", "distillation")  # figures of a step beside the progress, and then recovery


def run(call: Call) -> None:
    """Train, or with an adapter that is finished: measure it; progress on standard error, the adapter's path on
    standard output."""
    options = call.options(ModelOptions)
    if options.device == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes: each has its own
        options = replace(options, device=f"cuda:{os.environ['LOCAL_RANK']}")
    config, shape, synth = call.options(TrainConfig), call.options(AdapterConfig), call.options(SynthConfig)
    plan = call.options(PlanConfig)
    if options.adapter is not None:
        path = _scale(load_model(options), options, config, synth)
        print(json.dumps({"adapter": str(path)}) if call.json else path)
        return

    from sonic_kv.training.trainer import Trainer

    trainer = Trainer(load_model(options), shape, synth, config, plan)
    last: dict[str, Any] = {}
    quiet = not trainer.processes.is_main_process
    with Progress("step", config.max_steps, done=trainer.step, quiet=quiet) as bar:

        def show(record: dict[str, Any]) -> None:
            last.update(record)
            figures = [f"{name} {record[name]:.3f}" for name in SHOWN if name in record]
            figures += [f"recovery {last['recovery']:.3f}"] if "recovery" in last else []
            if record["phase"] == "scale":
                figures = ["finding out what scores are worth in nats"]
            figures.append(f"{record['tokens_per_second']:.0f} tokens/s")
            bar.add(record["step"] - bar.done, ", ".join(figures), record["remaining"])

        path = trainer.run(show)
    if trainer.processes.is_main_process:
        print(json.dumps({"adapter": str(path), **last}) if call.json else path)


def _scale(model: "SonicModel", options: ModelOptions, config: TrainConfig, synth: SynthConfig) -> Path:
    """Find out what the scores of a finished adapter are worth in nats; the path of a copy of it that knows it."""
    from sonic_kv.data.mixture import Mixture
    from sonic_kv.model.adapter import with_scale
    from sonic_kv.model.loading import find, find_adapter
    from sonic_kv.training.nats import measured

    path = find_adapter(options.adapter, find(options.model))
    assert path is not None
    data, count = Mixture(model.format, config, synth), config.scale_dialogues
    with Progress("dialogue", count) as bar:

        def dialogues() -> "Iterator[Encoded]":
            for number in range(count):
                yield data.dialogue(config.max_steps + number, 0)
                bar.add(1)

        scale = measured(model, dialogues())
    note(
        f"nats a later token: {scale.factor:.3g} × (sum of exp(2 score) of what is dropped) ^ {scale.power:.3g}"
    )
    return with_scale(path, scale, config.out)


TRAIN = Command(
    "train",
    "train an adapter for a model; a run that was stopped goes on from its last checkpoint; with --adapter: find what "
    "the scores of that one are worth in nats, and write it to --out with that",
    run,
    {
        "model": ModelOptions,
        "adapter": AdapterConfig,
        "train": TrainConfig,
        "plan": PlanConfig,
        "synth": SynthConfig,
    },
    file_only=("plan", "synth"),
    json="the adapter's path and the last step's record",
)
