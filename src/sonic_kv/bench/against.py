"""Another engine in the table: any server with OpenAI's chat completions, asked the same dialogues over HTTP.

The API takes texts, not tokens: a message is as many words as ours has tokens, words that are one token each for the
model at hand. A server that knows `ignore_eos` (vLLM, llama.cpp) writes replies of just as many tokens; one that
refuses it is asked without, and where a reply ends early, the time of its steps is scaled to a whole one.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from sonic_kv.bench.ways import Ids, Measured
from sonic_kv.errors import ServeError
from sonic_kv.model.model import SonicModel

MOST_WORDS = 2000
PATIENCE = 3600.0  # seconds for a reply
Message = dict[str, str]


class Remote:
    """A server's side of a dialogue, for every row of the batch: one request a row, all at a time.

    Args:
        url: as clients of OpenAI take it, with or without the final /v1.
        model: whose words messages are made of.

    Raises:
        ServeError: it cannot be reached, or refuses what it is asked.
    """

    def __init__(self, url: str, model: SonicModel, rows: int) -> None:
        self.name = url
        self._words = one_token_words(model)
        self._messages: list[list[Message]] = [[] for _ in range(rows)]
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._model = self._first_model()
        self._endless: dict[str, Any] = {"ignore_eos": True}

    def _first_model(self) -> str:
        try:
            answer = httpx.get(f"{self._url}/models")
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise ServeError(f"{self.name} does not answer /v1/models as OpenAI does: {error}") from error

    def turn(self, messages: list[Ids], reply_tokens: int) -> Measured:
        """Ask for all rows' replies at once; the first token is there when every row has one."""
        for row, ids in zip(self._messages, messages, strict=True):
            row.append({"role": "user", "content": self._text(ids)})
        begun = time.perf_counter()
        with ThreadPoolExecutor(len(messages)) as pool:
            replies = list(pool.map(lambda row: self._ask(row, reply_tokens), self._messages))
        if reply_tokens > 1 and min(count for *_, count in replies) < 2:
            raise ServeError(
                f"{self.name} ended a reply at once, so that its steps cannot be timed: try another seed"
            )
        first = max(at for _, at, _, _ in replies)
        steps = [(end - at) * (reply_tokens - 1) / max(count - 1, 1) for _, at, end, count in replies]
        for row, (text, *_) in zip(self._messages, replies, strict=True):
            row.append({"role": "assistant", "content": text})
        return Measured(first - begun, max(steps), 0.0, 0, 0, 0)

    def fill(self, turns: Sequence[tuple[Ids, Ids]]) -> None:
        """Show the server the turns before the next one, so that it can keep them as it keeps its own."""
        for message, reply in turns:
            for row in self._messages:
                row.append({"role": "user", "content": self._text(message)})
                row.append({"role": "assistant", "content": self._text(reply)})
        for row in self._messages if turns else ():
            self._ask([*row[:-1]], 1)

    def _text(self, ids: Ids) -> str:
        return "".join(self._words[i % len(self._words)] for i in ids).strip()

    def _ask(self, messages: list[Message], tokens: int) -> tuple[str, float, float, int]:
        """The reply, when its first piece and its end came, and its tokens."""
        body = {
            "model": self._model, "messages": messages, "max_tokens": tokens, "temperature": 0.0, "stream": True,
            "stream_options": {"include_usage": True}, **self._endless,
        }  # fmt: skip
        text, first, pieces, counted = "", None, 0, None
        try:
            with httpx.stream("POST", f"{self._url}/chat/completions", json=body, timeout=PATIENCE) as answer:
                if answer.status_code != httpx.codes.OK:
                    why = answer.read().decode()
                    if "ignore_eos" in body and "ignore_eos" in why:
                        self._endless = {}
                        return self._ask(messages, tokens)
                    raise ServeError(f"{self.name} refuses a dialogue: {why[:200]}")
                for event in _events(answer.iter_lines()):
                    if event.get("error"):
                        raise ServeError(f"{self.name} broke off: {event['error']}")
                    counted = (event.get("usage") or {}).get("completion_tokens", counted)
                    for choice in event.get("choices", ()):
                        piece = choice.get("delta", {}).get("content")
                        if piece:
                            first = time.perf_counter() if first is None else first
                            text, pieces = text + piece, pieces + 1
        except (httpx.HTTPError, ValueError) as error:  # or what is no JSON
            raise ServeError(f"{self.name} broke off: {error}") from error
        end = time.perf_counter()
        return text or " ", end if first is None else first, end, counted or pieces


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The server-sent events of a streamed reply."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def one_token_words(model: SonicModel) -> list[str]:
    """Words, each with the space before it, that are one token; of a tokenizer without any: one letter."""
    found = []
    for i in range(model.config.vocab_size):
        text = model.tokenizer.decode([i])
        if text[:1] == " " and text[1:].isalpha() and text.isascii():
            found.append(text)
        if len(found) == MOST_WORDS:
            break
    return found or [" a"]
