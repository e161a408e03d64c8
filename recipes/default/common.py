"""What the scripts of this recipe share: configuration, rendering, encoding, batches."""

import hashlib
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonic_kv.data.dialogues import read_dialogues

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
DATA = Path(os.environ.get("DATA", "data"))  # a file for each source
BOS, END = "<|bos|>", "<|end|>"
SCALES = ("toy", "cpu", "gpu")


def load_config(path: Path, scale: str = "cpu") -> dict[str, Any]:
    """A configuration; the tables of `[scale.NAME]` replace entries of those of the same name."""
    config = tomllib.loads(path.read_text(encoding="utf-8"))
    for table, entries in config.pop("scale", {}).get(scale, {}).items():
        config[table] |= entries
    return config


def held_out(dialogue_id: str) -> bool:
    """Whether a real dialogue is kept for validation (1 in 50, by hash)."""
    return hashlib.blake2b(dialogue_id.encode(), digest_size=2).digest()[0] < 5


def real_dialogues(
    folder: Path, sources: dict[str, int], validation: bool = False
) -> Iterator[dict[str, Any]]:
    """The first dialogues of each source, as many as `sources` says, of one side of the split."""
    for source, count in sources.items():
        of_side = (
            dialogue
            for dialogue in read_dialogues(folder / f"{source}.jsonl.gz", skip_malformed=True)
            if held_out(source + str(dialogue["id"])) == validation
        )
        yield from itertools.islice(of_side, count)


def render(messages: list[dict[str, str]]) -> str:
    """A dialogue as the chat template writes it."""
    return BOS + "".join(f"<|{message['role']}|>{message['content']}{END}" for message in messages)


@dataclass
class Example:
    """A dialogue as tokens; per token its loss weight and the index of the question it answers or -1."""

    ids: list[int]
    weights: list[float]
    questions: list[int]


def encode(tokenizer: Any, dialogue: dict[str, Any], answer_weight: float, user_weight: float) -> Example:
    """The tokens of a dialogue. Answers weigh `answer_weight`, other replies 1, the user `user_weight`."""
    text, spans, replies = BOS, [], []  # character spans
    asked = {q["message"]: q["answer"] for q in dialogue.get("meta", {}).get("questions", ())}
    for i, message in enumerate(dialogue["messages"]):
        text += f"<|{message['role']}|>"
        start = len(text)
        text += message["content"] + END
        if message["role"] == "assistant":
            replies.append((start, len(text)))
        if i in asked:
            at = start + message["content"].lower().index(asked[i].lower())
            spans.append((at, at + len(asked[i])))
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    weights, questions = [user_weight] * len(ids), [-1] * len(ids)
    reply, span = 0, 0
    for i, (start, end) in enumerate(encoding["offset_mapping"]):
        while reply < len(replies) and replies[reply][1] <= start:
            reply += 1
        while span < len(spans) and spans[span][1] <= start:
            span += 1
        if reply < len(replies) and start >= replies[reply][0]:
            weights[i] = 1.0
        if span < len(spans) and end > spans[span][0]:
            weights[i], questions[i] = answer_weight, span
    return Example(ids, weights, questions)


@dataclass
class Batch:
    """Right-padded examples. Padding has weight 0; question indices are unique in the batch."""

    ids: torch.Tensor  # (B, T)
    weights: torch.Tensor  # (B, T)
    questions: torch.Tensor  # (B, T)
    count: int  # questions

    def to(self, device: torch.device) -> "Batch":
        tensors = (t.to(device, non_blocking=True) for t in (self.ids, self.weights, self.questions))
        return Batch(*tensors, self.count)

    def pin_memory(self) -> "Batch":
        return Batch(
            self.ids.pin_memory(), self.weights.pin_memory(), self.questions.pin_memory(), self.count
        )


def collate(examples: list[Example], pad: int) -> Batch:
    length = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), length), pad)
    weights = torch.zeros(len(examples), length)
    questions = torch.full((len(examples), length), -1)
    count = 0
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n] = torch.tensor(example.ids)
        weights[row, :n] = torch.tensor(example.weights)
        asked = torch.tensor(example.questions)
        questions[row, :n] = torch.where(asked >= 0, asked + count, -1)
        count += max(example.questions) + 1
    weights[:, 0] = 0.0  # nothing predicts the first token
    return Batch(ids, weights, questions, count)


def loss_and_recall(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy, unweighted sum of the user's and replies' loss in nats, and per
    question whether every token of its answer is the most likely one (teacher forcing).
    """
    hidden = model.model(input_ids=batch.ids).last_hidden_state[:, :-1]  # (B, T-1, C)
    weights = batch.weights[:, 1:]
    kept = weights > 0
    logits = model.lm_head(hidden[kept]).float()  # (kept, V)
    targets = batch.ids[:, 1:][kept]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    loss = (losses * weights[kept]).sum() / weights[kept].sum()
    questions = batch.questions[:, 1:][kept]
    asked = questions >= 0
    right = torch.ones(batch.count, device=losses.device)
    right.scatter_reduce_(0, questions[asked], (logits[asked].argmax(-1) == targets[asked]).float(), "amin")
    return loss, losses.detach().sum(), right
