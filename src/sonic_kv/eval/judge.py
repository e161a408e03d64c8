"""A judge: written replies scored 1–10 by any model behind an OpenAI-compatible endpoint.

Verdicts are kept in `verdicts.jsonl`; a run that goes on asks for what is missing only.
"""

import hashlib
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonic_kv.errors import FileError, SonicError
from sonic_kv.eval.options import EvalOptions
from sonic_kv.eval.results import Record
from sonic_kv.eval.suites import Case, Suite
from sonic_kv.files import append_lines

ATTEMPTS, PARALLEL = 4, 4
PATIENCE = 8  # replies in a row without an answer: the judge is down
PAUSE = 1.0  # seconds before the second attempt; doubles
INSTRUCTIONS = (
    "You grade one reply of an assistant in a conversation. Read the conversation, then the reply to its last "
    "message. A reference reply by a capable assistant shows what is expected; other wordings are as good. Give a "
    "whole number from 1 (useless) to 10 (could not be better) for each of:\n{criteria}\n"
    "Answer with a JSON object and nothing else: {form}"
)

log = logging.getLogger(__name__)


class JudgeError(SonicError):
    """The judge cannot be asked."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint and the model asked there."""

    url: str
    model: str
    key: str | None
    timeout: float

    @classmethod
    def of(cls, options: EvalOptions) -> "Endpoint":
        """The endpoint of the options; its model is looked up where none is named.

        Raises:
            JudgeError: it does not answer.
        """
        assert options.judge_url is not None
        key, url = os.environ.get(options.judge_key), options.judge_url.rstrip("/")
        model = options.judge_model
        if model is None:
            listed = _call(f"{url}/models", None, key, options.judge_timeout)
            try:
                model = str(listed["data"][0]["id"])
            except (KeyError, IndexError, TypeError) as error:
                raise JudgeError(f"judge {url} lists no model: name one with --judge-model") from error
        return cls(url, model, key, options.judge_timeout)

    def ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The answer's text.

        Raises:
            JudgeError: no answer after several attempts.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": 0.0, "max_tokens": 256}
        answer = _call(f"{self.url}/chat/completions", body, self.key, self.timeout)
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise JudgeError(f"judge {self.url} answers in another form than OpenAI's: {error!r}") from error


def _call(url: str, body: Any, key: str | None, timeout: float) -> Any:
    """A JSON request; tried again while the server is busy, broken or out of reach."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            request = urllib.request.Request(url, data=data, headers=headers)
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                break
        except (OSError, ValueError) as error:  # unreachable, too slow, or no JSON
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise JudgeError(f"judge {url} gives no answer: {reason}")


def prompt(case: Case, message: int, reply: str, criteria: Mapping[str, str]) -> list[dict[str, str]]:
    """What the judge is asked about the reply to `messages[:message]`."""
    listed = "\n".join(f"- {name}: {meaning}" for name, meaning in criteria.items())
    form = json.dumps(dict.fromkeys(criteria, 5))
    before = "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in case.messages[:message])
    gold = case.messages[message]["content"]
    text = f"# Conversation\n\n{before}\n\n# Reference reply\n\n{gold}\n\n# Reply to grade\n\n{reply or '(empty)'}"
    return [
        {"role": "system", "content": INSTRUCTIONS.format(criteria=listed, form=form)},
        {"role": "user", "content": text},
    ]


def parse(answer: str, criteria: Iterable[str]) -> dict[str, int] | None:
    """The scores in a judge's answer; None: it gives none that can be read without doubt."""
    for found in reversed(re.findall(r"\{[^{}]*\}", answer)):
        try:
            scores = json.loads(found)
            read = {name: scores[name] for name in criteria}
        except (ValueError, KeyError):
            continue
        if all(type(s) is int or (type(s) is float and s == int(s)) for s in read.values()):
            whole = {name: int(s) for name, s in read.items()}
            if all(1 <= s <= 10 for s in whole.values()):
                return whole
    return None


def digest(record: Record, message: str) -> str:
    """Identifies a written reply: the same one in a dialogue is judged once, whichever methods wrote it."""
    about = [record["suite"], record["case"], message, record["replies"][message]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]


class Verdicts:
    """Verdicts of a run: `{"id", "model", "scores" or null, "answer"}` a line. An unreadable answer is kept, with null.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "verdicts.jsonl"
        self.found: dict[str, dict[str, int] | None] = {}
        self.models: dict[str, str] = {}  # who gave them
        if self.path.exists():
            # `splitlines` also splits at signs that JSON may hold
            with self.path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        verdict = json.loads(line)
                        self.found[verdict["id"]] = verdict["scores"]
                        self.models[verdict["id"]] = verdict["model"]
                    except (ValueError, KeyError, TypeError) as error:
                        raise FileError(f"{self.path}, line {number}: damaged: {error}") from error

    def add(self, id: str, model: str, scores: dict[str, int] | None, answer: str) -> None:
        """Keep a verdict."""
        self.found[id], self.models[id] = scores, model
        append_lines(self.path, [{"id": id, "model": model, "scores": scores, "answer": answer}])

    def of(self, record: Record) -> dict[str, Any] | None:
        """For each criterion the lowest score of a record's replies, and how many could not be read; None: not judged.

        A dialogue is as good as its worst turn (MT-Bench-101). One with an unreadable verdict has no score.
        """
        ids = [digest(record, message) for message in record.get("judged", ())]
        if not ids or not all(id in self.found for id in ids):
            return None
        read = [scores for id in ids if (scores := self.found[id]) is not None]
        whole = len(read) == len(ids)
        lowest = {name: min(scores[name] for scores in read) for name in read[0]} if whole else None
        return {"scores": lowest, "unreadable": len(ids) - len(read)}


def judge(
    endpoint: Endpoint,
    suites: Sequence[Suite],
    records: Iterable[Record],
    verdicts: Verdicts,
    progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> None:
    """Ask for every verdict that this judge has not given.

    A reply without an answer is left for the next run; an answer that cannot be read is asked for once
    more, and then kept as unreadable: it is counted, and is no score.

    Raises:
        JudgeError: the judge has not answered several times in a row.
    """
    cases = {(suite.name, case.id): (case, suite.criteria) for suite in suites for case in suite.cases}
    missing = {
        digest(record, message): (
            *cases[record["suite"], record["case"]],
            message,
            record["replies"][message],
        )
        for record in records
        if (record["suite"], record["case"]) in cases
        for message in record.get("judged", ())
        if verdicts.models.get(digest(record, message)) != endpoint.model
    }

    def ask(id: str) -> tuple[str, str, dict[str, int] | None, str] | JudgeError:
        case, criteria, message, text = missing[id]
        answer, scores = "", None
        try:
            for _ in range(2):
                answer = endpoint.ask(prompt(case, int(message), text, criteria))
                scores = parse(answer, criteria)
                if scores is not None:
                    break
        except JudgeError as error:
            return error
        return id, endpoint.model, scores, answer

    silent, ids = 0, list(missing)
    with ThreadPoolExecutor(PARALLEL) as pool:
        for at in range(0, len(ids), PARALLEL):
            for found in pool.map(ask, ids[at : at + PARALLEL]):
                if isinstance(found, JudgeError):
                    silent += 1
                    log.warning("%s", found)
                    if silent >= PATIENCE:
                        raise JudgeError(f"{found}; what is judged is kept: run the command again to go on")
                else:
                    silent = 0
                    verdicts.add(*found)
            progress("judging", min(at + PARALLEL, len(ids)), len(ids))
