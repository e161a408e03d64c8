"""`sonic-kv train`: an adapter for a model."""

import json
import os
from dataclasses import replace
from typing import Any

from sonic_kv.cli.command import Call, Command
from sonic_kv.cli.loading import load_model
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import ConfigError
from sonic_kv.model.options import AdapterConfig, ModelOptions
from sonic_kv.text import Progress
from sonic_kv.training.options import PlanConfig, TrainConfig

SHOWN = ("importance", "distillation", "recovery")  # figures beside the progress


def run(call: Call) -> None:
    """Train; a progress bar on standard error, the adapter's path on standard output."""
    options = call.options(ModelOptions)
    if options.adapter is not None:
        raise ConfigError(
            "train makes a new adapter: leave --adapter out (an unfinished run goes on by itself)"
        )
    if options.device == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes: each has its own
        options = replace(options, device=f"cuda:{os.environ['LOCAL_RANK']}")
    config, shape, synth = call.options(TrainConfig), call.options(AdapterConfig), call.options(SynthConfig)
    plan = call.options(PlanConfig)

    from sonic_kv.training.trainer import Trainer

    trainer = Trainer(load_model(options), shape, synth, config, plan)
    last: dict[str, Any] = {}
    quiet = not trainer.processes.is_main_process
    with Progress("step", config.max_steps, done=trainer.step, quiet=quiet) as bar:

        def show(record: dict[str, Any]) -> None:
            last.update(record)
            figures = [f"{name} {last[name]:.3f}" for name in SHOWN if name in last]
            figures.append(f"{record['tokens_per_second']:.0f} tokens/s")
            bar.add(record["step"] - bar.done, ", ".join(figures), record["remaining"])

        path = trainer.run(show)
    if trainer.processes.is_main_process:
        print(json.dumps({"adapter": str(path), **last}) if call.json else path)


TRAIN = Command(
    "train",
    "train an adapter for a model; a run that was stopped goes on from its last checkpoint",
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
