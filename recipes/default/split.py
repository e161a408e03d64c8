"""Write dialogues for `sonic-kv train --data`: the training side of every source, in the form of dialogues.

    python split.py --out ../../runs/dialogues.jsonl

Real dialogues as they are; problems of GSM8K four to a dialogue, and their solutions step by step; prose cut into
turns. An adapter that has seen one sort of text only chooses badly in others.
"""

import argparse
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from common import DATA, HERE, load_config, real_dialogues

GO_ON = ("And then?", "Go on.", "What comes next?", "Next step, please.")
Messages = list[dict[str, str]]


def problems(folder: Path, count: int) -> Iterator[Messages]:
    """GSM8K: four problems to a dialogue; and single ones, a line of the solution a turn."""
    found = [d["messages"] for d in real_dialogues(folder, {"gsm8k_train": 6 * count})]
    for at in range(0, len(found) - 3, 4):
        yield [message for problem in found[at : at + 4] for message in problem]
    rng = random.Random(0)
    for question, answer in found[: 2 * count]:
        first, *others = answer["content"].split("\n")
        if len(others) > 1:
            turns = [question, {"role": "assistant", "content": first}]
            for line in others:
                turns += (
                    {"role": "user", "content": rng.choice(GO_ON)},
                    {"role": "assistant", "content": line},
                )
            yield turns


def prose(folder: Path, source: str, count: int) -> Iterator[Messages]:
    """Stretches of a text, one to four sentences a turn."""
    rng = random.Random(source)
    for document in real_dialogues(folder, {source: 200}):
        text = " ".join(message["content"] for message in document["messages"])
        sentences = iter(re.split(r"(?<=[.!?])\s+", text))
        for _ in range(max(1, count // 50)):  # a long text gives several
            turns = [" ".join(itertools.islice(sentences, rng.randint(1, 4)))[:600] for _ in range(14)]
            if all(turns):
                yield [
                    {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
                ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--per-source", type=int, default=400)
    arguments = parser.parse_args()
    sources, count = load_config(arguments.config)["adapter"], arguments.per_source
    streams = {
        name: (d["messages"] for d in real_dialogues(arguments.data, {name: count}))
        for name in sources["dialogues"]
    }
    streams["gsm8k_train"] = problems(arguments.data, count)
    streams |= {
        name: itertools.islice(prose(arguments.data, name, count), count) for name in sources["prose"]
    }
    with arguments.out.open("w", encoding="utf-8") as file:
        for name, stream in streams.items():
            written = 0
            for written, messages in enumerate(stream, start=1):
                file.write(json.dumps({"id": f"{name}/{written}", "messages": messages}) + "\n")
            print(f"{name}: {written:,} dialogues", flush=True)
