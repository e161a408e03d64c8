"""Methods over dialogues, side by side: what each predicts of the gold replies, and what it keeps."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.eval.methods import Method, close_all
from sonic_kv.eval.suites import Case, Question
from sonic_kv.eval.turns import Row, read, write
from sonic_kv.model.encoded import Encoded, segment_ends
from sonic_kv.model.forward import forward
from sonic_kv.model.messages import ends_exchange
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reread import portions


@dataclass(frozen=True)
class ReplySpan:
    """A reply of the transcript: index of its message, where its header and its text begin, where it ends."""

    message: int
    header: int
    start: int
    stop: int


@dataclass(frozen=True)
class Script:
    """A case as tokens.

    Attributes:
        ends: transcript positions at which a segment is closed.
        questions: with the transcript positions of the tokens of its answer.
        scored: transcript positions of every reply's tokens.
        written: replies that the model is to write itself.
    """

    case: Case
    token_ids: list[int]
    prefix: int
    ends: list[int]
    replies: list[ReplySpan]
    questions: list[tuple[Question, list[int]]]
    scored: list[int]
    written: list[ReplySpan]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The segments, the last one open."""
        edges = [self.prefix, *self.ends, len(self.token_ids)]
        return [(a, b) for a, b in pairwise(edges) if b > a]


def make_script(
    model: SonicModel, case: Case, config: SessionConfig, max_tokens: int, generate: str = "none"
) -> Script | None:
    """The case's tokens, cut behind the last exchange that ends within `max_tokens`; None: no exchange does.

    Args:
        generate: what the model is to write: "none", replies to "questions", all scored "replies".
    """
    limit = min(max_tokens, model.max_length, model.sliding_window or max_tokens)
    encoded, messages = model.format.encode(case.messages), list(case.messages)
    count = sum(end <= limit for end in encoded.exchange_ends)
    if not count:
        return None
    if encoded.exchange_ends[count - 1] < len(encoded.token_ids):
        answered = _answered(messages)
        messages = messages[: answered[count - 1] + 1]
        encoded = model.format.encode(messages)
    replies = _replies(model, encoded, messages)
    questions = [
        (question, _answer(model, messages, encoded, question, reply))
        for question in case.questions
        for reply in replies
        if reply.message == question.message
    ]
    ends = segment_ends(encoded, config.min_segment_tokens, config.max_segment_tokens)
    scored = [i for reply in replies for i in range(reply.start, reply.stop)]
    wanted = {q.message for q, _ in questions if q.checked} if generate != "none" else set()
    wanted |= set(case.judged) if generate == "replies" else set()
    written = [reply for reply in replies if reply.message in wanted]
    return Script(case, encoded.token_ids, encoded.prefix_length, ends, replies, questions, scored, written)


def _answered(messages: Sequence[Any]) -> list[int]:
    """Which messages end an exchange."""
    return [number for number, message in enumerate(messages) if ends_exchange(message)]


def _replies(model: SonicModel, encoded: Encoded, messages: Sequence[Any]) -> list[ReplySpan]:
    found, before = [], encoded.prefix_length
    for message, end in zip(_answered(messages), encoded.exchange_ends, strict=True):
        start = end
        while start > before and encoded.assistant[start - 1]:
            start -= 1
        header = end - len(model.format.assistant(messages[message]["content"]))
        found.append(ReplySpan(message, header, start, end))
        before = end
    return found


def _answer(
    model: SonicModel, messages: Sequence[Any], encoded: Encoded, question: Question, reply: ReplySpan
) -> list[int]:
    """Transcript positions of the answer's tokens: its last mention in the gold reply, or all of that."""
    text = messages[question.message]["content"]
    at = text.lower().rfind(question.answer.lower())
    if at < 0 or not question.answer:
        return list(range(reply.start, reply.stop))
    first = reply.stop - len(model.format.assistant(text))
    tokens = model.format.spelling(text, at, at + len(question.answer))
    return [first + i for i in tokens if reply.start <= first + i < reply.stop]


@dataclass
class Opening:
    """What all methods share of a dialogue: full context's predictions, and the first segment, read.

    Attributes:
        full: log-probabilities in every scored token's place. (R, V)
        best: the most probable token there. (R,)
        row: with the first segment open.
        first: the first segment's share of the outcome.
        donor: the history of another dialogue.
    """

    script: Script
    full: Tensor
    best: Tensor
    row: Row
    first: "Outcome"
    donor: Sequence[int]
    max_new_tokens: int


@torch.no_grad()
def open_dialogues(
    model: SonicModel,
    scripts: Sequence[Script],
    donors: Sequence[Sequence[int]],
    methods: Sequence[Method],
    max_new_tokens: int = 64,
) -> list[Opening]:
    """Read every dialogue once in full, by the plain base model, and its first segment as methods do."""
    full = []
    for script in scripts:
        places = torch.tensor(script.scored, device=model.device) - 1
        ids = torch.tensor([script.token_ids], device=model.device)
        positions = torch.arange(ids.shape[1], device=model.device)[None]
        full.append(forward(model.plain, ids, positions, logits=places)[0].log_softmax(-1))
    rows = [Row(model.new_cache()) for _ in scripts]
    read(model, rows, [s.token_ids[: s.prefix] for s in scripts], [[] for _ in scripts])
    watches = tuple(dict.fromkeys(method.watch for method in methods if method.watch is not None))
    for row in rows:
        row.cache.mark_prefix()
        row.watches = watches
    openings = [
        Opening(s, f, f.argmax(-1), row, Outcome(), donor, max_new_tokens)
        for s, f, row, donor in zip(scripts, full, rows, donors, strict=True)
    ]
    _advance(model, [(o, o.row, o.first) for o in openings], 0)
    return openings


def _advance(model: SonicModel, going: Sequence[tuple[Opening, Row, "Outcome"]], number: int) -> None:
    """Read segment `number` of each row's dialogue, and add to its outcome."""
    tokens, wanted = [], []
    for opening, _, _ in going:
        start, stop = opening.script.spans[number]
        tokens.append(opening.script.token_ids[start:stop])
        wanted.append([i - 1 - start for i in opening.script.scored if start <= i < stop])
    # what is predicted of a portion is taken into account before the next one: logits are large
    for some in portions(range(len(going)), lambda n: len(tokens[n])):
        part = slice(some[0], some[-1] + 1)
        logits = read(model, [row for _, row, _ in going[part]], tokens[part], wanted[part])
        for (opening, _, outcome), found in zip(going[part], logits, strict=True):
            outcome.add(opening, found.log_softmax(-1))
    asked = [
        (row, row.before(reply.header), reply, outcome)
        for opening, row, outcome in going
        for reply in opening.script.written
        if opening.script.spans[number][0] <= reply.header < opening.script.spans[number][1]
    ]
    if asked:
        texts = write(model, [fork for _, fork, _, _ in asked], going[0][0].max_new_tokens)
        for (row, fork, reply, outcome), text in zip(asked, texts, strict=True):
            outcome.texts[reply.message] = text
            row.seconds += fork.seconds


@dataclass
class Outcome:
    """What one method did with one dialogue.

    Attributes:
        nll, kl: of every scored token; KL from full context.
        agree: the most probable token is full context's.
        right: it is the gold reply's.
        memory: entries kept after each closing, mean over layers and KV heads.
        damage: what all that was dropped was then predicted to cost, in nats a later token, where that is known.
        texts: replies that the model wrote, by message.
        bytes: of the cache at the end.
        seconds: wall time after the opening: closings, and its tokens' share of the forwards.
    """

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[bool] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    damage: list[float | None] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0

    def copy(self) -> "Outcome":
        """One that goes on by itself."""
        return Outcome(**{f.name: copy(getattr(self, f.name)) for f in fields(self)})

    def add(self, opening: Opening, log_p: Tensor) -> None:
        """Take the next scored tokens into account.

        Args:
            log_p: log-probabilities in their places. (n, V)
        """
        script, first = opening.script, len(self.nll)
        here = slice(first, first + len(log_p))
        ids = [script.token_ids[i] for i in script.scored[here]]
        gold, best = torch.tensor(ids, device=log_p.device, dtype=torch.long), log_p.argmax(-1)
        self.nll += (-log_p.gather(-1, gold[:, None])[:, 0]).tolist()
        full = opening.full[here]
        self.kl += torch.linalg.vecdot(full.exp(), full - log_p).tolist()
        self.agree += (best == opening.best[here]).tolist()
        self.right += (best == gold).tolist()


@dataclass(frozen=True)
class Task:
    """A dialogue to be replayed under a method."""

    method: Method
    budget: Budget
    opening: Opening


@torch.no_grad()
def replay(model: SonicModel, config: SessionConfig, tasks: Sequence[Task]) -> list[Outcome | Exception]:
    """Read dialogues to their ends, all side by side, each closing its segments by its own method.

    Returns:
        per task what it did, or why its method failed; whatever a method raises stops no other one.
    """
    rows, closers = [], []
    for task in tasks:
        watch, opening = task.method.watch, task.opening
        rows.append(opening.row.fork(() if watch is None else (watch,)))
        closers.append(task.method.start(model, task.budget, config, opening.donor))
    outcomes = [task.opening.first.copy() for task in tasks]
    spans = [task.opening.script.spans for task in tasks]
    failed: dict[int, Exception] = {}
    for number in range(1, max(map(len, spans))):
        going = [n for n in range(len(tasks)) if n not in failed and number < len(spans[n])]
        errors = close_all(model, [(closers[n], rows[n]) for n in going])
        for n, error in zip(going, errors, strict=True):
            if error is None:
                outcomes[n].memory.append(rows[n].kept())
                outcomes[n].damage.append(closers[n].damage(rows[n]))
            else:
                failed[n] = error
        left = [(tasks[n].opening, rows[n], outcomes[n]) for n in going if n not in failed]
        if left:
            _advance(model, left, number)
    for row, outcome in zip(rows, outcomes, strict=True):
        outcome.seconds, outcome.bytes = row.seconds, row.cache.nbytes
    return [failed.get(n, outcome) for n, outcome in enumerate(outcomes)]
