"""Measure an adapter against eviction, at the same number of entries, in step-by-step sessions.

    python compare.py --model ../../src/sonic_kv/assets/default --dialogues 100

Recall: share of the questions (`test` split: unseen wordings and entities) all of whose answer tokens
are the most probable ones, given the gold text before them. Recovery: how much of what history is worth
(the loss with it dropped, minus the loss with all of it) a method keeps, on every token after the first
exchange. Intervals: bootstrap over dialogues.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import DATA, HERE, encode, load_config, real_dialogues
from torch import Tensor
from tqdm import tqdm

from sonic_kv import Budget, ChatSession, SessionConfig, SonicModel
from sonic_kv.cache import SessionCache
from sonic_kv.config import SynthConfig
from sonic_kv.data.synth import generate_dialogues


class Recorder(SonicModel):
    """Keeps the logits of every fed token."""

    logits: list[Tensor]

    def feed(self, cache: SessionCache, token_ids: Sequence[int], *, all_logits: bool = False) -> Tensor:
        logits = super().feed(cache, token_ids, all_logits=True)
        self.logits.append(logits)
        return logits if all_logits else logits[-1]


def exchanges(messages: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Messages by exchange; each begins with a user message."""
    found: list[list[dict[str, str]]] = []
    for message in messages:
        if message["role"] == "user" or not found:
            found.append([])
        found[-1].append(message)
    return found


def run(
    model: Recorder, dialogue: dict[str, Any], budget: Budget | None, config: SessionConfig
) -> tuple[Tensor, int]:
    """Logits of every token (T, V) and entries at the end. Without budget each exchange begins afresh."""
    messages = dialogue["messages"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    model.logits = []
    session = ChatSession(model, budget or Budget(), system, config)
    for i, exchange in enumerate(exchanges(messages[1:] if system is not None else messages)):
        if budget is None and i:
            kept = model.logits
            session = ChatSession(model, Budget(), system, config)
            session.messages.append({"role": "user", "content": ""})  # not the first exchange
            model.logits = kept
        session.extend(exchange)
    return torch.cat(model.logits), session.stats.entries


def measure(
    model: Recorder,
    dialogues: list[dict[str, Any]],
    methods: dict[str, tuple[Budget | None, SessionConfig, bool]],
) -> list[dict[str, dict[str, float]]]:
    """Per dialogue and method: loss, KL to full context, questions, right answers, entries."""
    adapter, rows = model.adapter, []
    for dialogue in tqdm(dialogues):
        example = encode(model.tokenizer, dialogue, 1.0, 1.0)
        ids, question = torch.tensor(example.ids), torch.tensor(example.questions)
        start = model.format.encode(dialogue["messages"]).exchange_ends[0]
        row: dict[str, dict[str, float]] = {}
        full = torch.empty(0)
        for name, (budget, config, adapted) in methods.items():
            model.adapter = adapter if adapted else None
            logits, entries = run(model, dialogue, budget, config)
            if name == "none":  # prefixes were fed again with every exchange
                logits = drop_prefixes(logits, model, dialogue)
            log_p = logits[:-1].log_softmax(-1)
            full = log_p if name == "full" else full
            right = log_p.argmax(-1) == ids[1:]
            asked = question[1:]
            answers = [bool(right[asked == q].all()) for q in asked[asked >= 0].unique()]
            loss = -log_p.gather(-1, ids[1:, None])[start - 1 :, 0]
            kl = (full.exp() * (full - log_p)).sum(-1)[start - 1 :]
            row[name] = {
                "loss": float(loss.mean()),
                "kl": float(kl.mean()),
                "tokens": len(loss),
                "asked": len(answers),
                "right": sum(answers),
                "entries": entries,
            }
        rows.append(row)
    model.adapter = adapter
    return rows


def drop_prefixes(logits: Tensor, model: SonicModel, dialogue: dict[str, Any]) -> Tensor:
    """The logits of the transcript's tokens, without those of the prefix of every later exchange."""
    encoded = model.format.encode(dialogue["messages"])
    kept, at, begin = [], 0, 0
    for end in [*encoded.exchange_ends, len(encoded.token_ids)]:
        size = end - begin + (encoded.prefix_length if begin else 0)
        kept.append(logits[at : at + size][encoded.prefix_length if begin else 0 :])
        at, begin = at + size, end
    return torch.cat(kept)


def summary(rows: list[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    def total(key: str, method: str = name) -> float:
        weight = "tokens" if key in ("loss", "kl") else None
        return sum(r[method][key] * (r[method][weight] if weight else 1.0) for r in rows)

    worth = total("loss", "none") - total("loss", "full")
    return {
        "recall": total("right") / max(total("asked"), 1),
        "recovery": (total("loss", "none") - total("loss")) / worth,
        "kl": total("kl") / total("tokens"),
        "entries": total("entries") / len(rows),
    }


def interval(rows: list[dict[str, dict[str, float]]], name: str, key: str) -> tuple[float, float]:
    rng = random.Random(0)
    drawn = sorted(summary(rng.choices(rows, k=len(rows)), name)[key] for _ in range(500))
    return drawn[12], drawn[487]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE.parent.parent / "src/sonic_kv/assets/default")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--dialogues", type=int, default=100)
    parser.add_argument("--exchanges", type=int, default=14)
    parser.add_argument(
        "--real", action="store_true", help="held-out real dialogues instead of synthetic ones"
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--candidates", type=float, nargs="+", default=[SessionConfig().candidates])
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = Recorder.from_pretrained(arguments.model, arguments.adapter)
    if arguments.real:
        sources = load_config(HERE / "config.toml")["data"]["sources"]
        each = -(-arguments.dialogues // len(sources))
        found = list(real_dialogues(arguments.data, dict.fromkeys(sources, each), validation=True))
        dialogues = [d for d in found if len(exchanges(d["messages"])) >= 3][: arguments.dialogues]
        dialogues = [{**d, "messages": d["messages"][:40]} for d in dialogues]
    else:
        synth = SynthConfig(
            dialogues=arguments.dialogues,
            split=arguments.split,
            seed=77,
            min_exchanges=arguments.exchanges,
            max_exchanges=arguments.exchanges,
        )
        dialogues = list(generate_dialogues(synth))
    methods: dict[str, tuple[Budget | None, SessionConfig, bool]] = {
        "full": (Budget(), SessionConfig(), True),
        "none": (None, SessionConfig(), True),
    }
    for ratio in arguments.ratios:
        budget = Budget(compression_ratio=ratio)
        methods[f"recent queries {ratio}"] = (budget, SessionConfig(), False)
        if model.adapter is not None:
            methods[f"learned selection {ratio}"] = (budget, SessionConfig(reencode=False), True)
            if model.adapter.reencodes:
                for share in arguments.candidates:
                    name = f"SONIC {ratio}" + (
                        f", candidates {share}" if len(arguments.candidates) > 1 else ""
                    )
                    methods[name] = (budget, SessionConfig(candidates=share), True)
    with torch.no_grad():
        rows = measure(model, dialogues, methods)
    print(
        "| method | recall | 95 % | recovery | 95 % | KL to full | entries |\n|---|---|---|---|---|---|---|"
    )
    for name in methods:
        s = summary(rows, name)
        recall, recovery = interval(rows, name, "recall"), interval(rows, name, "recovery")
        print(
            f"| {name} | {s['recall']:.3f} | {recall[0]:.3f}–{recall[1]:.3f} | {s['recovery']:.3f} "
            f"| {recovery[0]:.3f}–{recovery[1]:.3f} | {s['kl']:.4f} | {s['entries']:.0f} |"
        )
    print(f"\n{len(rows)} dialogues, {sum(r['full']['asked'] for r in rows):.0f} questions")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows))
