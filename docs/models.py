"""Runs models and writes what holds of each: `python docs/models.py --dialogues FILE NAME=PATH … random`.

A PATH is whatever `--model` takes; `random` stands for the tests' families with random weights. Results are kept in
docs/models.json, so that models can be run one at a time; the table of docs/models.md is made from them (also if no
model is named).

Of each model: it loads; over a grid of messages its token ids are those of `apply_chat_template`; over the dialogues
(users' messages alone, `--turns` of them, `--tokens` a reply) the greedy full-context replies of `ChatSession` and of
the server are those of transformers' own `generate` on the template's ids; without an adapter, KL recovery of what
a session does by default (`sonic-kv eval`, method `reread`). float32 on the CPU. What is left out of a run stays as it
was in docs/models.json.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from serving import serving  # noqa: E402
from tiny import FAMILIES, talkative, tiny_model  # noqa: E402

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel  # noqa: E402
from sonic_kv.compress.options import SAFE_BUDGET  # noqa: E402
from sonic_kv.data.dialogues import read_dialogues  # noqa: E402
from sonic_kv.errors import SonicError  # noqa: E402
from sonic_kv.eval.options import EvalOptions  # noqa: E402
from sonic_kv.eval.report import number, write  # noqa: E402
from sonic_kv.eval.run import Evaluation  # noqa: E402

RESULTS, PAGE = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by docs/models.py -->\n", "<!-- to here -->\n"
COLUMNS = (
    "model",
    "loads",
    "template",
    "replies",
    "stops at",
    "without an adapter",
    "adapter",
    "sliding window",
    "GGUF",
    "vLLM",
)
VLLM = ("tiny", "llama, random weights", "qwen3, random weights")  # tests/test_vllm.py
RANDOM = ", random weights"
# models that cannot be had here, and the family whose random weights stand for them
UNTESTED = {
    "Llama 3.1, 3.2, 3.3": "llama",
    "DeepSeek-R1-Distill-Llama": "llama",
    "Qwen2.5, Qwen2.5-Coder above 0.5B": "qwen2",
    "DeepSeek-R1-Distill-Qwen": "qwen2",
    "Qwen3": "qwen3",
    "Mistral 7B": "mistral",
    "Gemma 2": "gemma2",
    "Gemma 3, text": "gemma3_text",
    "Phi-3, Phi-4-mini": "phi3-partial",
}
USER, ANSWER = {"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}
EDGES = {"role": "user", "content": "\n  two  spaces,\n\nlines and 東京 "}
GRID: list[list[dict[str, str]]] = [
    [USER],
    [USER, ANSWER],
    [SYSTEM, USER, ANSWER],
    [ANSWER, USER, ANSWER],
    [USER, USER, ANSWER],
    [USER, ANSWER, ANSWER],
    [USER, ANSWER, SYSTEM, USER],
    [EDGES, {**ANSWER, "content": EDGES["content"]}],
    [USER, {**ANSWER, "content": "<think>\nHm.\n</think>\n\nHello."}, USER],
]


def template_holds(model: SonicModel, messages: list[dict[str, str]]) -> bool:
    """Whether the prompt before a reply is the template's; a message that opens a turn may be written otherwise."""
    try:
        expected = rendered(model, messages)
    except Exception:  # a template may refuse an order of roles: then so do we
        try:
            model.format.prompt(messages)
        except SonicError:
            return True
        return False
    return model.format.prompt(messages) == expected


def rendered(model: SonicModel, messages: list[dict[str, str]]) -> list[int]:
    """The template's token ids up to where the reply begins."""
    return list(
        model.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def users(path: Path, turns: int) -> Iterator[list[str]]:
    """The users' messages of the dialogues that have at least `turns` of them."""
    for dialogue in read_dialogues(path):
        said = [message["content"] for message in dialogue["messages"] if message["role"] == "user"]
        if len(said) >= turns:
            yield said[:turns]


def generated(model: SonicModel, ids: list[int], tokens: int) -> tuple[list[int], float]:
    """What `generate` appends, and the smallest gap between the two most probable tokens on the way, in nats."""
    prompt = torch.tensor([ids])
    found = model.base.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=sorted(model.stop_ids),
        pad_token_id=min(model.stop_ids),
        temperature=None,
        top_p=None,
        top_k=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(found.logits).squeeze(1).topk(2, dim=-1).values
    return found.sequences[0, len(ids) :].tolist(), float((best[:, 0] - best[:, 1]).min())


def replies_hold(model: SonicModel, dialogues: list[list[str]], tokens: int) -> dict[str, Any]:
    """How many dialogues the session and the server hold as `generate` does; where they part, how near the tie was."""
    same, parted = 0, []
    sampling = SamplingConfig(max_new_tokens=tokens, temperature=0.0)
    with serving(model, config=SessionConfig(), budget=Budget()) as served:
        for number, said in enumerate(dialogues):
            chat, asked = ChatSession(model, Budget()), []
            for text in said:
                asked.append({"role": "user", "content": text})
                ids, gap = generated(model, rendered(model, asked), tokens)
                expected = model.tokenizer.decode([i for i in ids if i not in model.stop_ids])
                sent = chat.send(text, sampling).text
                answer = served.reply(asked, max_tokens=tokens, temperature=0)
                asked.append({"role": "assistant", "content": sent})
                if not sent == answer == expected:
                    parted.append({"dialogue": number, "turn": len(asked) // 2, "gap": gap})
                    print(number, [expected, sent, answer], gap, flush=True)
                    break
            else:
                same += 1
            print(f"dialogue {number}: {same} of {number + 1} the same", flush=True)
    return {
        "same": same,
        "dialogues": len(dialogues),
        "turns": len(dialogues[0]),
        "tokens": tokens,
        "parted": parted,
    }


def quality(model: SonicModel, file: str) -> dict[str, Any]:
    """KL recovery of the policy and the ratio that a session has without an adapter, with its 95 % interval.

    Args:
        file: dialogues, as `sonic-kv eval --data` takes them; eight are read, evenly over the file.
    """
    ratio = SAFE_BUDGET.compression_ratio
    assert ratio is not None
    with tempfile.TemporaryDirectory() as folder:
        options = EvalOptions(
            out=folder, data=(file,), methods=("reread",), ratios=(ratio,), limit=8, max_tokens=640
        )
        run = Evaluation(model, options)
        run.run(lambda standing: print(standing.as_text(), flush=True))
        suites = write(run.results)["suites"]
    ((suite, found),) = suites.items()
    (row,) = [row for row in found["methods"] if row["method"] == "reread"]
    keep = ("ratio", "cases", "failed", "kl_recovery", "entries", "history")
    return {"suite": suite, **{name: row[name] for name in keep}}


def checked(
    model: SonicModel, path: str, dialogues: list[list[str]], tokens: int, rated: str | None
) -> dict[str, Any]:
    """Everything about one model that this run looks at."""
    grid = [template_holds(model, messages) for messages in GRID]
    return {
        **({"replies": replies_hold(model, dialogues, tokens)} if dialogues else {}),
        **({"quality": quality(model, rated)} if rated else {}),
        "class": type(model.base).__name__,
        "grid": [sum(grid), len(grid)],
        "stops": sorted(model.tokenizer.convert_ids_to_tokens(sorted(model.stop_ids))),
        "adapter": model.adapter is not None,
        "window": model.base.config.get_text_config().to_dict().get("sliding_window"),
        "gguf": path.endswith(".gguf"),
    }


def row(name: str, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    replies, rated = found.get("replies"), found.get("quality")
    return [
        name,
        "yes",
        "{} of {}".format(*found["grid"]),
        f"{replies['same']} of {replies['dialogues']}" if replies else "untested",
        ", ".join(f"`{word}`" for word in found["stops"]),
        str(number(rated["kl_recovery"])) if rated else "no meaning" if name.endswith(RANDOM) else "untested",
        "yes" if found["adapter"] else "no",
        str(found["window"] or "none"),
        "yes" if found["gguf"] else "",
        "yes" if name in VLLM else "untested",
    ]


def render(results: dict[str, Any]) -> None:
    """Put the table into the page."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(row(name, results[name]) for name in results)]
    rows += [
        [f"{name} (as {family})", *["untested"] * (len(COLUMNS) - 1)] for name, family in UNTESTED.items()
    ]
    lines = "".join(
        "| " + " | ".join(cells).replace("<|", "<\\|").replace("|>", "\\|>") + " |\n" for cells in rows
    )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + lines + "\n" + END + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="NAME=PATH, or random")
    parser.add_argument(
        "--dialogues", type=Path, help="file of dialogues; without it no replies are compared"
    )
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument(
        "--rated",
        help="file of dialogues, as `sonic-kv eval --data` takes it; without it no quality is measured",
    )
    parser.add_argument("--adapter", help="of the one model that is named")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    talks = [] if options.dialogues is None else users(options.dialogues, options.turns)
    said = list(islice(talks, options.count))
    for named in options.models:
        name, _, path = named.partition("=")
        if named == "random":
            said = [[text[:20] for text in talk] for talk in said]  # a byte is a token there
            made = ((f"{family}{RANDOM}", tiny_model(family, adapter=False), "") for family in FAMILIES)
        else:
            made = iter(
                [(name, SonicModel.from_pretrained(path, options.adapter, dtype=torch.float32), path)]
            )
        for title, model, place in made:
            if not place:
                talkative(model.base)
            rated = options.rated if place else None  # what random weights predict of a text says nothing
            found = checked(model, place, said, options.tokens, rated)
            results[title] = {**results.get(title, {}), **found}
            RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    render(results)


if __name__ == "__main__":
    main()
