"""Measure a base model: recall of facts over distance, and bits per byte of real dialogues.

    python evaluate.py --model ../../src/sonic_kv/model/assets/tiny

Recall: greedy replies to the questions of generated dialogues (`test`: wordings and entities the model
has not seen), the history before each question as it is in the dialogue. A reply is right if it
contains the answer, as whole words, apart from case and punctuation.
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from common import HERE, collate, encode, load_config, loss_and_recall, real_dialogues
from transformers import AutoModelForCausalLM, AutoTokenizer

from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues

FACTS = ("fact", "code", "update", "coreference")  # kinds of question that `recall` counts


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[\w:-]+", text.lower()))


def is_right(reply: str, answer: str) -> bool:
    return f" {normalised(answer)} " in f" {normalised(reply)} "


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, share = 1.96, right / count
    centre, spread = (
        share + z * z / (2 * count),
        z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2),
    )
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def questions_at(distance: int, count: int, split: str) -> list[tuple[list[dict[str, str]], dict[str, Any]]]:
    """Histories (ending with the question) and questions, `distance` exchanges after the fact."""
    config = SynthConfig(
        dialogues=100 * count,
        split=split,  # type: ignore[arg-type]
        seed=2026,
        min_exchanges=12,
        max_exchanges=12,
        min_distance=distance,
        max_distance=distance,
    )
    found: list[tuple[list[dict[str, str]], dict[str, Any]]] = []
    for dialogue in generate_dialogues(config):
        for question in dialogue["meta"]["questions"]:
            found.append((dialogue["messages"][: question["message"]], question))
            if len(found) == count:
                return found
    return found


@torch.no_grad()
def replies(model: Any, tokenizer: Any, histories: list[list[dict[str, str]]], batch: int = 32) -> list[str]:
    """Greedy replies."""
    tokenizer.padding_side = "left"
    texts = []
    for at in range(0, len(histories), batch):
        prompts = [
            tokenizer.apply_chat_template(h, tokenize=False, add_generation_prompt=True)
            for h in histories[at : at + batch]
        ]
        inputs = tokenizer(prompts, add_special_tokens=False, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        out = model.generate(
            **inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


@torch.no_grad()
def bits_per_byte(
    model: Any, tokenizer: Any, config: dict[str, Any], folder: Path, per_source: int
) -> dict[str, float]:
    """Bits per byte of held-out real dialogues, all and by source: loss with role and end tokens, bytes without."""
    found = {}
    for source in config["data"]["sources"]:
        nats, size = 0.0, 0
        for dialogue in real_dialogues(folder, {source: per_source}, validation=True):
            example = encode(tokenizer, dialogue, 1.0, 1.0)
            if len(example.ids) <= 1024:
                nats += loss_and_recall(model, collate([example], tokenizer.pad_token_id))[1].item()
                size += sum(len(message["content"].encode()) for message in dialogue["messages"])
        if size:  # else every dialogue is longer
            found[source] = (nats / math.log(2), size)
    every = sum(bits for bits, _ in found.values()) / sum(size for _, size in found.values())
    return {"all": every} | {source: bits / size for source, (bits, size) in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of real dialogues, for bits per byte")
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--split", default="test")
    parser.add_argument("--distances", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--questions", type=int, default=700, help="at each distance")
    parser.add_argument("--failures", type=Path, help="write the wrong replies here, as JSON lines")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    wrong: list[dict[str, Any]] = []
    for distance in arguments.distances:
        asked = questions_at(distance, arguments.questions, arguments.split)
        given = replies(model, tokenizer, [history for history, _ in asked])
        right = [is_right(reply, q["answer"]) for reply, (_, q) in zip(given, asked, strict=True)]
        facts = [ok for ok, (_, q) in zip(right, asked, strict=True) if q["kind"] in FACTS]
        low, high = wilson(sum(facts), len(facts))
        kinds = {
            kind: [ok for ok, (_, q) in zip(right, asked, strict=True) if q["kind"] == kind]
            for kind in sorted({q["kind"] for _, q in asked})
        }
        print(
            json.dumps(
                {
                    "distance": distance,
                    "facts": len(facts),
                    "recall": round(sum(facts) / len(facts), 4),
                    "interval": [round(low, 4), round(high, 4)],
                    **{kind: f"{sum(of)}/{len(of)}" for kind, of in kinds.items()},
                }
            ),
            flush=True,
        )
        wrong += [
            {
                **q,
                "question": history[-1]["content"],
                "fact": history[q["evidence"]]["content"],
                "reply": reply,
            }
            for reply, (history, q), ok in zip(given, asked, right, strict=True)
            if not ok
        ]
    if arguments.failures:
        arguments.failures.write_text("".join(json.dumps(w, ensure_ascii=False) + "\n" for w in wrong))
    if arguments.data:
        config = load_config(arguments.config)
        print(json.dumps({"bits_per_byte": bits_per_byte(model, tokenizer, config, arguments.data, 40)}))
