"""`sonic-kv demo`: the same dialogues with full, dropped and compressed history, side by side.

Every method is fed the same gold messages; at each question it answers from its own cache, on a fork,
so that a wrong answer does not change what comes after.
"""

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

from sonic_kv.bench.options import DemoOptions
from sonic_kv.compress.options import Budget
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import DataError
from sonic_kv.session.options import SamplingConfig
from sonic_kv.text import Progress, bytes_text, percent_text, table

if TYPE_CHECKING:
    from sonic_kv.model.messages import Message
    from sonic_kv.model.model import SonicModel


@dataclass(frozen=True)
class Method:
    """A way to keep history. Without a budget every exchange begins with an empty history."""

    name: str
    budget: Budget | None
    adapted: bool = True  # off: without the adapter, entries are chosen by what recent queries look at


@dataclass(frozen=True)
class Answer:
    """A reply, and whether it holds what was asked for (None: nobody said what is right)."""

    text: str
    right: bool | None


@dataclass
class Replay:
    """One method over one dialogue."""

    answers: dict[int, Answer] = field(default_factory=dict)  # by index of the reply
    entries: list[int] = field(default_factory=list)  # in the cache after each exchange
    bytes: int = 0  # of the cache at the end
    seconds: float = 0.0


@dataclass(frozen=True)
class Dialogue:
    """Messages, and for the replies to compare (by index) what is right, where that is known."""

    messages: Sequence["Message"]
    questions: dict[int, str | None]


@dataclass(frozen=True)
class Result:
    """Every method over every dialogue."""

    model: str
    parameters: int
    dialogues: list[Dialogue]
    methods: list[Method]
    replays: list[list[Replay]]  # per method, per dialogue


@dataclass(frozen=True)
class Summary:
    """One method over all dialogues: a row of the table."""

    method: str
    questions: int
    right: int | None  # None: the dialogues do not say what is right
    entries: float  # at the end of a dialogue, mean
    bytes: float  # at the end of a dialogue, mean
    seconds: float  # feeding and answering, all dialogues

    @property
    def recall(self) -> float | None:
        """Share of the questions that were answered right."""
        return None if self.right is None or not self.questions else self.right / self.questions


def is_right(reply: str, answer: str) -> bool:
    """Whether `reply` holds `answer` as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", reply, re.IGNORECASE) is not None


def read(options: DemoOptions) -> list[Dialogue]:
    """The dialogues to replay. Where a file names no questions, every reply after the first is one.

    Raises:
        DataError: the file is malformed or holds no dialogue with a reply.
    """
    from sonic_kv.data.dialogues import read_dialogues
    from sonic_kv.data.synth import generate_dialogues

    if options.dialogue is None:
        config = SynthConfig(
            dialogues=options.dialogues,
            split="test",
            seed=options.seed,
            min_exchanges=options.exchanges,
            max_exchanges=options.exchanges,
        )
        found = list(generate_dialogues(config))
    else:
        found = list(itertools.islice(read_dialogues(options.dialogue), options.dialogues))
    dialogues = [Dialogue(one["messages"], _questions(one)) for one in found]
    dialogues = [dialogue for dialogue in dialogues if dialogue.questions]
    if not dialogues:
        raise DataError(f"{options.dialogue or 'the generator'} holds no dialogue with a question to replay")
    return dialogues


def _questions(dialogue: dict[str, Any]) -> dict[int, str | None]:
    messages = dialogue["messages"]
    replies = [i for i in range(1, len(messages)) if messages[i]["role"] == "assistant"]
    replies = [i for i in replies if messages[i - 1]["role"] == "user"]
    try:
        known: dict[int, str | None] = {
            int(question["message"]): str(question["answer"]) for question in dialogue["meta"]["questions"]
        }
    except (KeyError, TypeError, ValueError):  # `meta` is the file's own affair
        known = {}
    known = {i: answer for i, answer in known.items() if i in replies}
    return known or dict.fromkeys(replies[1:])


def exchanges(messages: Sequence["Message"]) -> Iterator[tuple[int, int]]:
    """Ranges of message indices: each begins at a user message; a system prompt belongs to none."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    yield from zip(starts, [*starts[1:], len(messages)], strict=True)


def replay(model: "SonicModel", method: Method, dialogue: Dialogue, sampling: SamplingConfig) -> Replay:
    """Feed a dialogue's gold messages and answer its questions on the way."""
    from sonic_kv.session.session import ChatSession

    messages = dialogue.messages
    system = messages[0]["content"] if messages[0]["role"] == "system" else None

    def new_session() -> ChatSession:
        return ChatSession(model, budget=method.budget or Budget(), system=system, sampling=sampling)

    result, session = Replay(), new_session()
    for start, end in exchanges(messages):
        if method.budget is None:
            session = new_session()
        asked = start + 1 < end and start + 1 in dialogue.questions
        fork = session.fork() if asked else None
        begin = time.perf_counter()
        if fork is not None:
            reply = fork.send(messages[start]["content"]).text
            answer = dialogue.questions[start + 1]
            result.answers[start + 1] = Answer(reply, None if answer is None else is_right(reply, answer))
        session.extend(messages[start:end])
        result.seconds += time.perf_counter() - begin
        result.entries.append(session.stats.entries)
    result.bytes = session.stats.bytes
    return result


def run(model: "SonicModel", options: DemoOptions) -> Result:
    """Replay every dialogue with every method; a progress bar on standard error."""
    from sonic_kv.model.model import SonicModel

    dialogues = read(options)
    methods = [
        Method("full context", Budget()),
        Method("history dropped", None),
        *(
            Method(f"SONIC {percent_text(ratio)}", Budget(compression_ratio=ratio))
            for ratio in options.ratios
        ),
    ]
    if model.adapter is not None and options.ratios:
        ratio = sorted(options.ratios)[len(options.ratios) // 2]
        name = f"eviction {percent_text(ratio)}"  # the same entries, chosen by recent queries
        methods.append(Method(name, Budget(compression_ratio=ratio), adapted=False))
    plain = SonicModel(model.base, model.tokenizer)
    sampling = SamplingConfig(max_new_tokens=options.max_new_tokens, temperature=0.0)
    replays: list[list[Replay]] = [[] for _ in methods]
    warm_up = Dialogue(dialogues[0].messages[:4], {})  # so that the first method's time compares
    replay(model, methods[0], warm_up, sampling)
    total = len(methods) * len(dialogues)
    with Progress("replay", total) as bar:
        for dialogue in dialogues:
            for method, done in zip(methods, replays, strict=True):
                used = model if method.adapted else plain
                done.append(replay(used, method, dialogue, sampling))
                bar.add()
    parameters = sum(weight.numel() for weight in model.base.parameters())
    return Result(type(model.base).__name__, parameters, dialogues, methods, replays)


def summaries(result: Result) -> list[Summary]:
    """The table's rows."""
    rows = []
    for method, replays in zip(result.methods, result.replays, strict=True):
        known = [a.right for one in replays for a in one.answers.values() if a.right is not None]
        rows.append(
            Summary(
                method=method.name,
                questions=sum(len(one.answers) for one in replays),
                right=sum(known) if known else None,
                entries=mean(one.entries[-1] for one in replays),
                bytes=mean(one.bytes for one in replays),
                seconds=sum(one.seconds for one in replays),
            )
        )
    return rows


def recall_text(summary: Summary) -> str:
    """Recall as a percentage, or a dash."""
    return "–" if summary.recall is None else percent_text(summary.recall)


def as_text(result: Result) -> str:
    """The first dialogue's questions with every method's answer, then the table."""
    first, blocks = result.dialogues[0], []
    for index, answer in first.questions.items():
        lines = [f"user: {first.messages[index - 1]['content']}"]
        if answer is not None:
            lines[0] += f"  [{answer}]"
        for method, replays in zip(result.methods, result.replays, strict=True):
            given = replays[0].answers.get(index)
            if given is not None:
                mark = {True: "+", False: "-", None: " "}[given.right]
                lines.append(f"  {mark} {method.name:<16} {' '.join(given.text.split())}")
        blocks.append("\n".join(lines))
    head = ("method", "recall", "right", "entries", "cache", "time")
    rows = [
        (
            s.method,
            recall_text(s),
            f"{'–' if s.right is None else s.right} of {s.questions}",
            f"{s.entries:.0f}",
            bytes_text(s.bytes),
            f"{s.seconds:.1f} s",
        )
        for s in summaries(result)
    ]
    size = f"{result.model}, {result.parameters:,} parameters, {len(result.dialogues)} dialogues"
    return "\n\n".join([*blocks, table(head, rows), f"{size}; entries and cache at a dialogue's end (mean)."])


def as_json(result: Result) -> dict[str, Any]:
    """Figures and answers, for programs."""
    return {
        "model": result.model,
        "parameters": result.parameters,
        "methods": [
            {
                **vars(summary),
                "recall": summary.recall,
                "entries_after_exchange": [one.entries for one in replays],
                "answers": [{i: vars(answer) for i, answer in one.answers.items()} for one in replays],
            }
            for summary, replays in zip(summaries(result), result.replays, strict=True)
        ],
    }
