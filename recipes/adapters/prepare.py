"""Training dialogues for a chat model's adapter: several sources, many of which look back.

    python prepare.py --data FOLDER --out ../../runs/dialogues.jsonl.gz

A scorer learns what later turns need of earlier ones, so later turns must need something. Long dialogues are entered
anywhere, GSM8K's problems are solved line by line, and a part of the dialogues ends with a request to repeat an
earlier message. The data folder holds one `NAME.jsonl.gz` a source, one `{"messages": […]}` a line; it is
never copied.
"""

import argparse
import gzip
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from sonic_kv.files import replacing

Messages = list[dict[str, str]]

# Share of each source. The project's own generator is mixed in by `data_share` of the training run.
SHARES = {
    "gsm8k_train": 0.26,
    "topicalchat_valid_test": 0.21,
    "qmsum": 0.13,
    "multiwoz21_valtest": 0.13,
    "fairytaleqa": 0.10,
    "self_dialogue": 0.09,
    "gpteacher_roleplay_codegen": 0.05,
    "taskmaster4": 0.03,
}
MOST = 4000  # dialogues read of a source
REPEATED = 0.26  # share of dialogues that end with a repetition
NEXT = (
    "And then?",
    "What comes next?",
    "Go on.",
    "What is the next step?",
    "How do I continue?",
    "Okay, next?",
    "What follows from that?",
    "Please continue.",
    "What do I do now?",
)
FIRST = ("", "\n\nWhat is the first step?", "\n\nLet us go step by step.")
ANOTHER = ("Let me ask something else. ", "Here is another one. ", "Next problem: ", "")
REPEAT = (
    'Repeat word for word what I said in the message that starts with "{}".',
    'Please repeat your message that starts with "{}".',
    'What exactly was said after "{}"? Quote it in full.',
    'Copy the part that begins with "{}".',
)


def read(folder: Path, name: str) -> list[Messages]:
    """The first dialogues of a source, without system prompts."""
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line)["messages"] for line in islice(lines, MOST)]
    return [[m for m in messages if m["role"] != "system"] for messages in found]


def turn(user: str, assistant: str) -> Messages:
    """One exchange."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def solved(problems: list[Messages], rng: random.Random) -> Messages:
    """One or two of GSM8K's problems, most of them line by line."""
    found: Messages = []
    for number in range(rng.choice((1, 1, 2))):
        question, answer = (message["content"] for message in rng.choice(problems)[:2])
        question = (rng.choice(ANOTHER) if number else "") + question
        if rng.random() < 0.6:
            lines = [line for line in answer.split("\n") if line.strip()]
            lines = lines[:-1] if rng.random() < 0.7 else lines
            for place, line in enumerate(lines):
                found += turn(rng.choice(NEXT) if place else question + rng.choice(FIRST), line)
        else:
            found += turn(question, answer)
    return found


def entered(messages: Messages, rng: random.Random) -> Messages:
    """A dialogue, from any exchange on if it is long."""
    if len(messages) > 12 and rng.random() < 0.6:
        return messages[2 * rng.randrange((len(messages) - 8) // 2) :]
    return messages


def looking_back(messages: Messages, words: int, rng: random.Random) -> Messages:
    """The first messages, of about so many words, and a request to repeat one of them."""
    count = size = 0
    while count + 1 < len(messages) and (not count or size < words):
        size += sum(len(m["content"].split()) for m in messages[count : count + 2])
        count += 2
    kept = messages[:count]
    texts = [m["content"] for m in kept if len(m["content"].split()) > 6]
    if not texts:
        return messages
    repeated = rng.choice(texts).split(" ")
    start = " ".join(repeated[: rng.choice((2, 3, 4))])
    return kept + turn(rng.choice(REPEAT).format(start), " ".join(repeated[:70]))


def dialogue(sources: dict[str, list[Messages]], words: int, rng: random.Random) -> tuple[str, Messages]:
    """One dialogue, and the source that it comes from."""
    while True:
        name = rng.choices(list(SHARES), list(SHARES.values()))[0]
        messages = (
            solved(sources[name], rng) if name == "gsm8k_train" else entered(rng.choice(sources[name]), rng)
        )
        if rng.random() < REPEATED:
            messages = looking_back(messages, words, rng)
        if len(messages) > 3:
            return name, messages


def main(arguments: argparse.Namespace) -> None:
    """Write the dialogues, one a line."""
    sources = {name: read(arguments.data, name) for name in SHARES}
    with replacing(arguments.out, make_folder=True) as file, gzip.open(file, "wt", encoding="utf-8") as out:
        for number in range(arguments.count):
            rng = random.Random(f"{arguments.seed}-{number}")
            name, messages = dialogue(sources, arguments.words, rng)
            line: dict[str, Any] = {"id": f"{name}-{number}", "source": name, "messages": messages}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000, help="dialogues")
    parser.add_argument("--words", type=int, default=230, help="words before a repetition, about")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
