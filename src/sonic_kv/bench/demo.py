"""`sonic-kv demo`: the same dialogues with full, dropped and compressed history, side by side.

The replay is that of the evaluation: every way reads the same gold messages, and at each question it answers from its
own cache, so that a wrong answer does not change what comes after. Answers are greedy.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from sonic_kv.bench.options import DemoOptions
from sonic_kv.bench.report import Report
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import DataError
from sonic_kv.eval.matching import exact_match
from sonic_kv.eval.methods import METHODS
from sonic_kv.eval.replay import Outcome, Script, Task, make_script, open_dialogues
from sonic_kv.eval.replay import replay as replayed
from sonic_kv.eval.suites import Case, dialogue
from sonic_kv.eval.suites import read as read_cases
from sonic_kv.model.messages import Message
from sonic_kv.model.model import SonicModel
from sonic_kv.text import Progress, bytes_text, percent_text, table

DIALOGUES = Path(__file__).parent / "dialogues.json"  # chosen by what SmolLM2 answers with full context alone
SIDE_BY_SIDE = 8  # dialogues under one way
TIMES = (
    "Times say little here: a short dialogue's time goes into the model's weights, not its cache. From a few thousand "
    "tokens on the smaller cache is faster (`sonic-kv bench dialogue`)."
)


@dataclass(frozen=True)
class Way:
    """A way to keep history: its name here, the method's among those of the evaluation, and the share removed."""

    name: str
    method: str
    ratio: float | None = None


@dataclass(frozen=True)
class Answer:
    """A reply, and whether it holds what was asked for (None: nobody said what is right)."""

    text: str
    right: bool | None


@dataclass(frozen=True)
class Replay:
    """One way over one dialogue.

    Attributes:
        answers: by index of the reply.
        entries: of the closed history, after each closing, mean over layers and KV heads; begins with 0.
        bytes: of the cache at the end.
        seconds: wall time, without its first segment, which all ways share.
    """

    answers: dict[int, Answer]
    entries: list[float]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """Every way over every dialogue: `replays` per way, per dialogue."""

    model: str
    parameters: int
    cases: list[Case]
    ways: list[Way]
    replays: list[list[Replay]]


@dataclass(frozen=True)
class Summary:
    """One way over all dialogues: a row of the table.

    Attributes:
        right: answers that are right; None: the dialogues do not say what is.
        same: answers that are full context's, word by word.
        entries, bytes, seconds: of closed history, of the cache, at a dialogue's end, of a dialogue; mean.
    """

    way: str
    questions: int
    right: int | None
    same: int
    entries: float
    bytes: float
    seconds: float

    @property
    def recall(self) -> float | None:
        """Share of the questions that were answered right."""
        return None if self.right is None or not self.questions else self.right / self.questions


def read(options: DemoOptions) -> list[Case]:
    """The dialogues to replay. Where one names no questions, every reply after the first is one.

    Raises:
        DataError: the file is malformed or holds no dialogue with a reply.
    """
    path = Path(options.dialogue or DIALOGUES)
    found = list(itertools.islice(read_cases(path, dialogue), options.dialogues))
    cases = [case if case.questions else replace(case, judged=case.judged[1:]) for case in found]
    cases = [case for case in cases if case.questions or case.judged]
    if not cases:
        raise DataError(f"{path} holds no dialogue with a question to replay")
    return cases


def exchanges(messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Ranges of message indices: each begins at a user message; a system prompt belongs to none."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    yield from zip(starts, [*starts[1:], len(messages)], strict=True)


def ways(model: SonicModel, ratios: Sequence[float]) -> list[Way]:
    """Full context, none, at the smallest ratio as many entries but the newest ones, and ours at every ratio."""
    ours = "reread" if model.adapter is None else "sonic"
    found = [Way("full context", "full"), Way("history dropped", "none")]
    if ratios:
        found.append(Way(f"newest {percent_text(1 - min(ratios))} kept", "streaming-llm", min(ratios)))
    return found + [Way(f"{percent_text(ratio)} removed", ours, ratio) for ratio in sorted(ratios)]


def run(model: SonicModel, options: DemoOptions) -> Result:
    """Replay every dialogue in every way; how far it is on standard error."""
    chosen, config = ways(model, options.ratios), SessionConfig()
    cases, scripts = [], []
    for case in read(options):
        script = make_script(
            model, case, config, model.max_length, "questions" if case.questions else "replies"
        )
        if script is not None and script.written:
            cases.append(case)
            scripts.append(script)
    if not cases:
        raise DataError(f"no dialogue has a question within the model's {model.max_length} positions")
    replays: list[list[Replay]] = [[] for _ in chosen]
    methods = [METHODS[way.method] for way in chosen]
    with Progress("replay", len(cases) * len(chosen)) as bar:
        for at in range(0, len(cases), SIDE_BY_SIDE):
            part = scripts[at : at + SIDE_BY_SIDE]
            openings = open_dialogues(model, part, [()] * len(part), methods, options.max_new_tokens)
            for way, method, done in zip(chosen, methods, replays, strict=True):
                budget = Budget(compression_ratio=way.ratio)
                done += _replay(model, config, [Task(method, budget, opening) for opening in openings])
                bar.add(len(part), way.name)
    parameters = sum(weight.numel() for weight in model.base.parameters())
    return Result(type(model.base).__name__, parameters, cases, chosen, replays)


def _replay(model: SonicModel, config: SessionConfig, tasks: Sequence[Task]) -> Iterator[Replay]:
    """Every dialogue in one way."""
    begun = time.perf_counter()
    outcomes = replayed(model, config, tasks)
    seconds = (time.perf_counter() - begun) / len(tasks)
    for task, outcome in zip(tasks, outcomes, strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        yield _told(task.opening.script, outcome, seconds)


def _told(script: Script, outcome: Outcome, seconds: float) -> Replay:
    known = {question.message: question for question, _ in script.questions if question.checked}
    answers = {}
    for message, text in outcome.texts.items():
        asked = known.get(message)
        right = None if asked is None else exact_match(text, asked.answer, number=asked.number)
        answers[message] = Answer(text, right)
    return Replay(answers, [0.0, *outcome.memory], outcome.bytes, seconds)


def summaries(result: Result) -> list[Summary]:
    """The table's rows."""
    rows = []
    for way, replays in zip(result.ways, result.replays, strict=True):
        known = [a.right for one in replays for a in one.answers.values() if a.right is not None]
        same = (
            answer.text == full.answers[message].text
            for one, full in zip(replays, result.replays[0], strict=True)
            for message, answer in one.answers.items()
        )
        rows.append(
            Summary(
                way=way.name,
                questions=sum(len(one.answers) for one in replays),
                right=sum(known) if known else None,
                same=sum(same),
                entries=mean(one.entries[-1] for one in replays),
                bytes=mean(one.bytes for one in replays),
                seconds=mean(one.seconds for one in replays),
            )
        )
    return rows


def cells(summary: Summary) -> dict[str, str]:
    """A row of the table, by column."""
    return {
        "right": "–" if summary.right is None else f"{summary.right} of {summary.questions}",
        "as full context": f"{summary.same} of {summary.questions}",
        "entries": f"{summary.entries:.0f}",
        "cache": bytes_text(summary.bytes),
        "time": f"{summary.seconds:.1f} s",
    }


def gain(rows: Sequence[Summary]) -> str:
    """What the smallest ratio saves and keeps, in one sentence; empty without ratios."""
    if len(rows) < 4:
        return ""
    full, none, newest, found = rows[:4]
    answers = f"{found.same} of {found.questions} answers are full context's word by word"
    if found.right is not None:
        answers = (
            f"{found.right} of {found.questions} answers are right; {full.right} with full context, {newest.right} "
            f"with the newest entries alone, {none.right} without history"
        )
    return (
        f"{found.way[0].upper()}{found.way[1:]}: the cache takes {bytes_text(found.bytes)} instead of "
        f"{bytes_text(full.bytes)}, and {answers}."
    )


def report(result: Result) -> Report:
    """The first dialogue's questions with every way's answer, then the table; and the figures for programs."""
    first, blocks = result.cases[0], []
    known = {question.message: question.answer for question in first.questions}
    for message in result.replays[0][0].answers:
        lines = [f"user: {first.messages[message - 1]['content']}"]
        if message in known:
            lines[0] += f"  [{known[message]}]"
        for way, replays in zip(result.ways, result.replays, strict=True):
            given = replays[0].answers[message]
            mark = {True: "+", False: "-", None: " "}[given.right]
            lines.append(f"  {mark} {way.name:<22} {' '.join(given.text.split())}")
        blocks.append("\n".join(lines))
    rows = summaries(result)
    figures = table(["way", *cells(rows[0])], [[row.way, *cells(row).values()] for row in rows])
    size = (
        f"{result.model}, {result.parameters:,} parameters, {len(result.cases)} dialogues. Entries of the closed "
        "history, cache and time of a dialogue, on average."
    )
    text = "\n\n".join(part for part in (*blocks, figures, size, gain(rows), TIMES) if part)
    return Report(text, {"model": result.model, "parameters": result.parameters, "ways": _data(result, rows)})


def _data(result: Result, rows: Sequence[Summary]) -> list[dict[str, Any]]:
    return [
        {
            **vars(row),
            "recall": row.recall,
            "entries_after_closing": [one.entries for one in replays],
            "answers": [{i: vars(answer) for i, answer in one.answers.items()} for one in replays],
        }
        for row, replays in zip(rows, result.replays, strict=True)
    ]
