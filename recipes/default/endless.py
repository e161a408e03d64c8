"""A conversation that goes on and on at a fixed number of entries: recall by distance, memory and time per turn.

    python endless.py --exchanges 500 --max-entries 512

Recall is teacher-forced: all tokens of the answer are the most probable ones after the gold text. Every
method keeps the same number of entries in every layer and KV head: this project's, H2O's running sum of
attention over every query, and the newest (a sliding window with sinks). The dialogue is far longer than the
model's positions; all sessions move their keys back alike.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import encode
from torch import Tensor
from tqdm import tqdm

from sonic_kv import Budget, ChatSession, SessionConfig, SonicModel
from sonic_kv.bench.demo import exchanges
from sonic_kv.cache.cache import SessionCache
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues


class Recorder(SonicModel):
    """Keeps the most probable token after every fed one."""

    best: list[Tensor]

    def feed(self, cache: SessionCache, token_ids: Sequence[int], *, all_logits: bool = False) -> Tensor:
        logits = super().feed(cache, token_ids, all_logits=True)
        self.best.append(logits.argmax(-1))
        return logits if all_logits else logits[-1]


EDGES = (2, 8, 32, 128)  # of the buckets of distances, in exchanges


def session(model: Recorder, method: str, budget: Budget, system: str | None) -> ChatSession:
    """A session that keeps entries by `method`."""
    bits: Any = 4 if "4 bits" in method else None
    ours = method.startswith("sonic")
    config = SessionConfig(reencode=ours, bits=bits)
    policy = {"newest": "streaming", "h2o": "h2o"}.get(method)
    return ChatSession(model, budget, system, config, policy=policy)


def run(model: Recorder, dialogue: dict[str, Any], method: str, budget: Budget) -> dict[str, Any]:
    """Bytes and seconds of every exchange, and for every question whether its answer was right."""
    messages = dialogue["messages"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    model.best = []
    chat = session(model, method, budget, system)
    seconds, sizes = [], []
    for first, end in tqdm(list(exchanges(messages)), desc=method, leave=False):
        start = time.perf_counter()
        chat.extend(messages[first:end])
        seconds.append(time.perf_counter() - start)
        sizes.append(chat.stats.bytes)
    example = encode(model.tokenizer, dialogue, 1.0, 1.0)
    ids, asked = torch.tensor(example.ids)[1:], torch.tensor(example.questions)[1:]
    right = torch.cat(model.best)[:-1] == ids
    answers = [bool(right[asked == q].all()) for q in range(len(dialogue["meta"]["questions"]))]
    return {"bytes": sizes, "seconds": seconds, "answers": answers, "tokens": len(example.ids)}


def around(values: list[float], turn: int) -> float:
    """The median of ten exchanges that end with exchange number `turn`."""
    return sorted(values[max(turn - 10, 0) : turn])[5]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dialogues", type=int, default=1)
    parser.add_argument("--exchanges", type=int, default=500)
    parser.add_argument("--max-entries", type=int, default=512)
    parser.add_argument("--methods", nargs="+", default=["sonic", "sonic 4 bits", "h2o", "newest"])
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    model = Recorder.from_pretrained("tiny")
    synth = SynthConfig(
        dialogues=arguments.dialogues,
        split="test",
        seed=arguments.seed,
        min_exchanges=arguments.exchanges,
        max_exchanges=arguments.exchanges,
        max_distance=arguments.exchanges,
    )
    dialogues = list(generate_dialogues(synth))
    budget = Budget(max_entries=arguments.max_entries)
    ranges = list(zip((1, *EDGES), (*(e - 1 for e in EDGES), arguments.exchanges), strict=True))
    names = [f"{low}–{high}" for low, high in ranges]
    print(
        "| method | recall at distance " + " | ".join(names) + " | bytes, last / 50th | time, last / 50th |"
    )
    print("|---" * (len(names) + 3) + "|")
    with torch.no_grad():
        for method in arguments.methods:
            found = [run(model, dialogue, method, budget) for dialogue in dialogues]
            cells = []
            for low, high in ranges:
                answers = [
                    answer
                    for dialogue, result in zip(dialogues, found, strict=True)
                    for question, answer in zip(dialogue["meta"]["questions"], result["answers"], strict=True)
                    if low <= question["distance"] <= high
                ]
                cells.append(f"{sum(answers) / max(len(answers), 1):.2f} ({len(answers)})")
            last = arguments.exchanges
            bytes_ratio = found[0]["bytes"][-1] / found[0]["bytes"][49]
            time_ratio = around(found[0]["seconds"], last) / around(found[0]["seconds"], 55)
            print(f"| {method} | {' | '.join(cells)} | {bytes_ratio:.3f} | {time_ratio:.2f} |", flush=True)
    print(f"\n{sum(result['tokens'] for result in found)} tokens, positions: {model.max_length}")
