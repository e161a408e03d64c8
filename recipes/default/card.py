"""Plots and sample dialogues of the model card, docs/tiny-model.md.

    python card.py --base BASE/log.jsonl --adapter ADAPTER/log.jsonl --eval FOLDER --out DIR

The plots go to DIR (`docs/tiny-model`); the samples, as the model says them, to standard output.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from sonic_kv import Budget, ChatSession, SonicModel
from sonic_kv.session.options import SamplingConfig

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
METHODS = {
    "sonic": "SONIC",
    "kvzip": "KVzip",
    "keydiff": "KeyDiff",
    "h2o": "H2O",
    "snapkv": "SnapKV",
    "streaming-llm": "StreamingLLM",
}
PANELS = {
    ("synthetic", "recall"): "recall, synthetic dialogues",
    ("mt-bench-101", "kl_recovery"): "KL recovery, MT-Bench-101",
    ("gsm8k-var", "kl_recovery"): "KL recovery, MathChat",
}


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


def quality(run: Path, path: Path) -> None:
    """What each method keeps, over what is removed: a panel for each of `PANELS`."""
    found = json.loads((run / "summary.json").read_text())["suites"]
    figure, panels = plt.subplots(1, len(PANELS), figsize=(12.5, 3.6), constrained_layout=True)
    for panel, ((suite, figure_name), title) in zip(panels, PANELS.items(), strict=True):
        rows = found[suite]["methods"]
        for method, label in METHODS.items():
            mine = sorted((r for r in rows if r["method"] == method), key=lambda r: r["ratio"])
            at, values = [100 * r["ratio"] for r in mine], [r[figure_name]["value"] for r in mine]
            ours = method == "sonic"
            panel.plot(at, values, marker="o", markersize=3.5, label=label, linewidth=3 if ours else 1.3)
        (full,) = (r[figure_name] for r in rows if r["method"] == "full")
        panel.axhline(1.0 if full is None else full["value"], color="0.4", linewidth=0.8, linestyle=":")
        panel.set(title=title, xlabel="% of the history removed")
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, help="log.jsonl of pretrain.py")
    parser.add_argument("--adapter", type=Path, help="log.jsonl of sonic-kv train")
    parser.add_argument("--eval", type=Path, help="folder of sonic-kv eval over many ratios")
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
    if arguments.eval:
        quality(arguments.eval, arguments.out / "quality.svg")
    model = SonicModel.from_pretrained("tiny")
    for users in SAMPLES:
        chats = [ChatSession(model, Budget(compression_ratio=ratio)) for ratio in (0.0, 0.8)]
        print("| user | full context | 80 % removed |\n|---|---|---|")
        for user in users:
            replies = [chat.send(user, SamplingConfig(max_new_tokens=32)).text for chat in chats]
            print(f"| {user} | {replies[0]} | {replies[1]} |")
        print()
