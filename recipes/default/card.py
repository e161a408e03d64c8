"""Plots and sample dialogues of the model card, docs/default-model.md.

    python card.py --base ../../runs/base/log.jsonl --adapter ../../runs/adapter/log.jsonl --out DIR

The plots go to DIR (`docs/default-model`); the samples, as the model says them, to standard output.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from sonic_kv import Budget, ChatSession, SonicModel
from sonic_kv.config import SamplingConfig

SAMPLES = (
    (
        "Hi there!",
        "My sister Ada lives in Oslo.",
        "I went to the market this morning.",
        "The code of the garage is 4471.",
        "Do you like music?",
        "Where does my sister live?",
        "What is the code of the garage?",
    ),
    (
        "My friend Mona works as a baker.",
        "Tell me something about music.",
        "By the way, Mona changed jobs, she is a pilot now.",
        "I am thinking of seeing a film tonight.",
        "What is Mona's job?",
    ),
    (
        "My name is Ingrid and my brother Pavel lives in Lisbon.",
        "What did you do today?",
        "Where does my brother live?",
        "And what is my name?",
    ),
    (
        "What is 17 plus 25?",
        "Can you tell me about the French Revolution?",
        "Write a short poem about the sea.",
    ),
)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def smooth(values: list[float], window: int = 12) -> list[float]:
    """Running means."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def curves(steps: list[dict[str, Any]], across: str, names: dict[str, str], path: Path) -> None:
    """One panel for each of the logged numbers `names`, with its title."""
    figure, panels = plt.subplots(1, len(names), figsize=(4 * len(names), 2.8), constrained_layout=True)
    for panel, (name, title) in zip(panels, names.items(), strict=True):
        rows = [row for row in steps if name in row]
        at, values = [row[across] for row in rows], [row[name] for row in rows]
        panel.plot(at, values, color="0.8", linewidth=0.8)
        panel.plot(at, smooth(values), color="tab:blue")
        panel.set(title=title, xlabel=across)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, help="log.jsonl of pretrain.py")
    parser.add_argument("--adapter", type=Path, help="log.jsonl of sonic-kv train")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "sonic-kv"  # the same file every time
    if arguments.base:
        names = {"loss": "loss, answers weighted", "recall": "recall on fresh dialogues"}
        curves(read(arguments.base), "tokens", names, arguments.out / "base.svg")
    if arguments.adapter:
        names = {"importance": "importance: cross-entropy", "distillation": "distillation: KL, both ways"}
        curves(read(arguments.adapter), "step", names, arguments.out / "adapter.svg")
    model = SonicModel.from_pretrained()
    for users in SAMPLES:
        chats = [ChatSession(model, Budget(compression_ratio=ratio)) for ratio in (0.0, 0.8)]
        print("| user | full context | 80 % removed |\n|---|---|---|")
        for user in users:
            replies = [chat.send(user, SamplingConfig(max_new_tokens=32)).text for chat in chats]
            print(f"| {user} | {replies[0]} | {replies[1]} |")
        print()
