"""Train an adapter of the published form; options stand in train.toml beside this file.

    python train.py --model PATH-OR-HUB-ID --data dialogues.jsonl.gz --out runs/published

An unfinished run goes on by itself. The adapter's path is printed at the end.
"""

import argparse
from pathlib import Path

from losses import LossConfig
from objective import published

from sonic_kv import SonicModel
from sonic_kv.cli.flags import build, read_toml
from sonic_kv.data.options import SynthConfig
from sonic_kv.model.options import AdapterConfig
from sonic_kv.training.options import PlanConfig, TrainConfig
from sonic_kv.training.trainer import Trainer

SECTIONS = {
    "adapter": AdapterConfig,
    "train": TrainConfig,
    "loss": LossConfig,
    "plan": PlanConfig,
    "synth": SynthConfig,
}


def main(arguments: argparse.Namespace) -> Path:
    """Train as the arguments and the file say; the adapter's path."""
    given = read_toml(arguments.config, SECTIONS)
    flags = {"train": {"data": tuple(arguments.data), "out": str(arguments.out)}}
    made = {name: build(cls, name, given, flags) for name, cls in SECTIONS.items()}
    model = SonicModel.from_pretrained(arguments.model)
    objective = published(made["loss"])
    trainer = Trainer(model, made["adapter"], made["synth"], made["train"], made["plan"], objective)
    total = made["train"].max_steps
    return trainer.run(lambda record: print(f"step {record['step']} of {total}: {record}", flush=True))


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", help="path or hub id; none: the default model")
    found.add_argument("--data", nargs="*", default=[], help="dialogues, as sonic-kv train takes them")
    found.add_argument("--out", type=Path, default=Path("runs/published"))
    found.add_argument("--config", type=Path, default=Path(__file__).parent / "train.toml")
    return found


if __name__ == "__main__":
    print(main(parser().parse_args()))
