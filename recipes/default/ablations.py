"""Ablations of re-encoding: one thing changed at a time, on dialogues kept out of training.

    python ablations.py --data ../../runs/dialogues.jsonl --out ../../runs/ablations --seeds 0 1 2

Every variant keeps the shipped adapter's importance scorer as it is and trains the rest anew for a few minutes. Then
KL recovery is measured on synthetic dialogues of the validation split and on real ones kept out of training: the same
dialogues for all variants, so differences are paired. What is done is not done again.
"""

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import DATA, HERE, load_config, real_dialogues
from torch import Tensor, nn
from tqdm import tqdm

import sonic_kv.model
from sonic_kv import SonicModel
from sonic_kv.data.mixture import synthetic
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.tokens import trainable, truncate
from sonic_kv.files import write_atomic
from sonic_kv.model.chat_format import Encoded
from sonic_kv.model.layout import Layout, own_segment
from sonic_kv.model.options import AdapterConfig
from sonic_kv.text import table
from sonic_kv.training import losses
from sonic_kv.training.objectives import Objective
from sonic_kv.training.options import LossConfig, PlanConfig, TrainConfig
from sonic_kv.training.trainer import Trainer
from sonic_kv.training.validation import RATIOS, history_logits

MAX_TOKENS = 768


@dataclass(frozen=True)
class Variant:
    """What is different from the recipe."""

    adapter: dict[str, Any] | None = None
    loss: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    steps: float = 1.0  # times the number of steps
    anchors: str = "learned"
    nexus_see_nexus: bool = False


VARIANTS = {
    "recipe": Variant(),
    "not re-encoded": Variant(steps=0, adapter={"lora_rank": 0}),
    "whole-segment view": Variant(adapter={"scope": "segment"}),
    "Nexus see earlier Nexus of their segment": Variant(nexus_see_nexus=True),
    "rank 4": Variant(adapter={"lora_rank": 4, "lora_alpha": 8}),
    "rank 64": Variant(adapter={"lora_rank": 64, "lora_alpha": 128}),
    "third of the steps": Variant(steps=1 / 3),
    "three times the steps": Variant(steps=3),
    "ratio fixed at 0.8": Variant(plan={"ratio_min": 0.8, "ratio_max": 0.8, "ratio_jitter": 0.0}),
    "no noise, one candidate, nothing raw": Variant(
        plan={"noise": (0.0,), "candidates": (1.0,), "raw_share": 0.0}
    ),
    "forward KL only": Variant(loss={"forward_kl": 1.0}),
    "reverse KL only": Variant(loss={"forward_kl": 0.0}),
    "KL weighted by need": Variant(loss={"distillation_need": 2.0}),
    "cross-entropy instead of KL": Variant(loss={"distillation_weight": 0.0, "ce_weight": 1.0}),
    "+ cross-entropy": Variant(loss={"ce_weight": 0.3}),
    "+ attention mass": Variant(loss={"attention_weight": 0.3}),
    "+ attention outputs": Variant(loss={"output_weight": 0.3}),
    "+ ignored": Variant(loss={"ignored_weight": 1.0}),
    "+ coverage": Variant(loss={"coverage_weight": 0.1}),
    "+ reconstruction": Variant(loss={"reconstruction_weight": 0.3}),
    "anchors at random": Variant(anchors="random"),
    "anchors at random, not re-encoded": Variant(steps=0, adapter={"lora_rank": 0}, anchors="random"),
    "newest tokens as anchors": Variant(anchors="newest"),
    "newest tokens, not re-encoded": Variant(steps=0, adapter={"lora_rank": 0}, anchors="newest"),
}


class FixedScorer(nn.Module):
    """In the learned scorer's place: random scores, or none, so that recency decides."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, layer: int, keys: Tensor, values: Tensor) -> Tensor:
        if self.rule == "random":
            return torch.rand(keys.shape[:3], generator=torch.Generator().manual_seed(layer))
        return torch.zeros(keys.shape[:3])

    def recency(self, layer: int, distance: Tensor) -> Tensor:
        return -distance.float() * (self.rule == "newest")


def nexus_too(layout: Layout, rows: Tensor | None = None) -> Tensor:
    """`own_segment`, but Nexus tokens see the Nexus tokens before them as well."""
    assert rows is None
    both = layout.nexus[:, :, None] & layout.nexus[:, None, :]
    same = layout.segment[:, :, None] == layout.segment[:, None, :]
    return own_segment(layout) | (both & same & (layout.index[:, None, :] <= layout.index[:, :, None]))


@contextmanager
def own_view(variant: Variant) -> Iterator[None]:
    sonic_kv.model.own_segment = nexus_too if variant.nexus_see_nexus else own_segment  # type: ignore[attr-defined]
    try:
        yield
    finally:
        sonic_kv.model.own_segment = own_segment  # type: ignore[attr-defined]


def train(variant: Variant, seed: int, arguments: argparse.Namespace, name: str) -> Objective:
    """Train a variant, the scorer apart; returns what holds its model and adapter."""
    shipped = SonicModel.from_pretrained("tiny").adapter
    assert shipped is not None
    model = SonicModel.from_pretrained("tiny")
    recipe = load_config(HERE / "adapter.toml")
    adapter = AdapterConfig(**recipe["adapter"] | (variant.adapter or {}))
    loss = LossConfig(importance_weight=0.0, importance_need=0.0, **(variant.loss or {}))
    config = TrainConfig(
        out=str(arguments.out / name.replace(" ", "-")),
        data=(str(arguments.data),),
        data_share=recipe["train"]["data_share"],
        token_cache=str(arguments.out / "tokens"),
        max_steps=max(1, round(arguments.steps * variant.steps)),
        importance_steps=0,
        max_tokens=MAX_TOKENS,
        lr=recipe["train"]["lr"],
        seed=seed,
    )
    trainer = Trainer(
        model, adapter, SynthConfig(**recipe["synth"]), config, loss, PlanConfig(**(variant.plan or {}))
    )
    scorer = shipped.scorer if variant.anchors == "learned" else FixedScorer(variant.anchors)
    trainer.adapter.scorer = scorer.requires_grad_(False)  # type: ignore[assignment]
    with own_view(variant), tqdm(total=config.max_steps, desc=name, leave=False) as bar:
        if variant.steps and trainer.adapter.reencodes:
            trainer.run(lambda record: bar.update(1) and None)
    return trainer.objective


def divergences(objective: Objective, encoded: Encoded) -> list[float]:
    """KL to full context after the first closing: without history, then compressed at `RATIOS`. Nats, summed."""
    _, (alone, whole, *compressed) = history_logits(objective, encoded)
    teacher = whole.log_softmax(-1)
    return [float(losses.kl(teacher, x.log_softmax(-1)).sum()) for x in (alone, *compressed)]


def held_out(model: SonicModel, folder: Path, count: int) -> dict[str, list[Encoded]]:
    """Dialogues that neither base nor adapter was trained on."""
    synth = SynthConfig(**load_config(HERE / "adapter.toml")["synth"] | {"split": "validation"})
    sources = load_config(HERE / "config.toml")["adapter"]["dialogues"]
    real = [
        truncate(model.format.encode(dialogue["messages"]), MAX_TOKENS)
        for source in sources
        for dialogue in real_dialogues(folder, {source: 8}, validation=True)
    ]
    real = [encoded for encoded in real if trainable(encoded) and len(encoded.token_ids) > 150]
    return {
        "synthetic": list(islice(synthetic(model.format, replace(synth, seed=7), MAX_TOKENS), count)),
        "real": random.Random(7).sample(real, count),
    }


def recoveries(found: Tensor) -> Tensor:
    """KL recovery at `RATIOS` of summed divergences. (D, 1 + ratios) → (ratios,)"""
    sums = found.sum(0)
    return 1 - sums[1:] / sums[0]


def compare(ours: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Recovery, its difference from `base`, and the 95 % bootstrap interval of that over dialogues, paired.

    Args:
        ours, base: divergences of the same dialogues. (D, 1 + ratios)

    Returns:
        four times (ratios,)
    """
    drawn = torch.randint(len(ours), (1000, len(ours)), generator=torch.Generator().manual_seed(0))
    gaps = torch.stack([recoveries(ours[d]) - recoveries(base[d]) for d in drawn])
    low, high = gaps.quantile(torch.tensor([0.025, 0.975], dtype=gaps.dtype), dim=0)
    return recoveries(ours), recoveries(ours) - recoveries(base), low, high


def report(records: list[dict[str, Any]]) -> str:
    """Recovery, and its difference from the recipe: mean over seeds, 95 % bootstrap interval over dialogues."""
    by = {(r["variant"], r["seed"]): r for r in records}
    rows = []
    for variant in dict.fromkeys(r["variant"] for r in records):
        seeds = [seed for name, seed in by if name == variant and ("recipe", seed) in by]
        if not seeds:
            continue
        row = [variant, str(len(seeds))]
        for suite in records[0]["divergences"]:
            ours, base = (
                torch.tensor([by[name, seed]["divergences"][suite] for seed in seeds], dtype=torch.float64)
                for name in (variant, "recipe")
            )  # (seeds, D, 1 + ratios)
            for mean, gap, low, high in zip(*compare(ours.mean(0), base.mean(0)), strict=True):
                difference = "" if variant == "recipe" else f" ({gap:+.3f}, {low:+.3f} to {high:+.3f})"
                row.append(f"{mean:.3f}{difference}")
        rows.append(row)
    names = [f"{suite} {ratio:.0%}" for suite in records[0]["divergences"] for ratio in RATIOS]
    return table(["variant", "seeds", *names], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="training dialogues: what split.py writes")
    parser.add_argument("--held-out", type=Path, default=DATA, help="folder of the real sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--dialogues", type=int, default=32, help="held-out dialogues of each kind")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    suites = held_out(SonicModel.from_pretrained("tiny"), arguments.held_out, arguments.dialogues)
    for seed in arguments.seeds:
        for name in arguments.variants:
            path = arguments.out / f"{name.replace(' ', '-')}-{seed}.json"
            if path.exists():
                continue
            variant = VARIANTS[name]
            objective = train(variant, seed, arguments, f"{name} {seed}")
            with own_view(variant):
                found = {
                    suite: [divergences(objective, encoded) for encoded in dialogues]
                    for suite, dialogues in suites.items()
                }
            record = {
                "variant": name,
                "seed": seed,
                "steps": arguments.steps,
                **asdict(variant),
                "divergences": found,
            }
            write_atomic(path, json.dumps(record).encode())
            print(
                report([json.loads(p.read_text()) for p in sorted(arguments.out.glob("*.json"))]), flush=True
            )
