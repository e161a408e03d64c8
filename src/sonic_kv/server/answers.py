"""The bodies of answers, as OpenAI's API has them, and the one table of errors."""

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

from sonic_kv.errors import (
    BusyError,
    ConfigError,
    ContextLengthError,
    DataError,
    MemoryLimitError,
    NotFoundError,
    NumericalError,
    SonicError,
    StoreError,
    UnsupportedModelError,
    UpstreamError,
)
from sonic_kv.server.logs import request_id
from sonic_kv.server.requests import Outcome, View
from sonic_kv.server.tools import Tools
from sonic_kv.session.generate import Piece
from sonic_kv.session.kept import kept_of
from sonic_kv.session.logprobs import Logprob
from sonic_kv.session.reply import reply_message

LEAST = -9999.0  # a logarithm that JSON can hold stands for that of zero
RETRY_AFTER = "2"  # seconds


def sonic_usage(view: View | None) -> dict[str, Any]:
    """What the session takes: logical tokens, entries kept, bytes, and the share that is not kept."""
    if view is None:
        return {"session_id": None}
    stats = view.stats
    return {
        "session_id": view.name,
        "compression_ratio": view.budget.compression_ratio or 0.0,
        "max_damage": view.budget.max_damage,
        "logical_tokens": stats.logical_tokens,
        "entries": stats.entries,
        "bytes": stats.bytes,
        "full_bytes": stats.full_bytes,
        "predicted_damage": stats.predicted_damage,
        "saved": round(1.0 - stats.bytes / stats.full_bytes, 4) if stats.full_bytes else 0.0,
    }


def session_body(view: View) -> dict[str, Any]:
    """`GET /v1/sessions/{id}`."""
    stats = view.stats
    return {
        "object": "session",
        "id": view.name,
        "messages": view.messages,
        **{name: value for name, value in sonic_usage(view).items() if name != "session_id"},
        "prefix": stats.prefix,
        "memory": stats.memory,
        "open": stats.open,
        "segments": [{"tokens": s.tokens, "entries": round(s.entries, 2)} for s in stats.segments],
    }


def kept_body(view: View) -> dict[str, Any]:
    """`GET /v1/sessions/{id}/kept`: of each message its tokens, and which share of all heads still holds each.

    Raises:
        UnsupportedModelError: the tokenizer does not tell.
    """
    messages = [
        {
            "role": kept.role,
            "tokens": [{"text": text, "share": round(share, 3)} for text, share in kept.pieces],
        }
        for kept in kept_of(view.dialogue)
    ]
    return {"object": "session.kept", "id": view.name, "messages": messages}


def chat_usage(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Tokens of one prompt and of all replies to it; the session is the first one's."""
    first, written = outcomes[0], sum(outcome.completion_tokens for outcome in outcomes)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": first.prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "sonic": sonic_usage(first.view),
    }


def logprobs_body(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    """How likely the tokens of an answer were."""

    def body(one: Logprob) -> dict[str, Any]:
        return {"token": one.text, "logprob": max(one.logprob, LEAST), "bytes": one.bytes}

    content = [{**body(one), "top_logprobs": [body(other) for other in one.top]} for one in logprobs]
    return {"content": content, "refusal": None}


class Completion:
    """The answers to one chat request, whole or in chunks, as server-sent events have them.

    Args:
        logprobs: how likely tokens were is asked for.
        tools: of each choice, with how its reply begins.
    """

    def __init__(
        self, model: str, logprobs: bool = False, tools: Sequence[tuple[Tools | None, str]] = ()
    ) -> None:
        self._logprobs, self._tools = logprobs, tools
        self._readers = [None if one is None else one.reader(begun) for one, begun in tools]
        self._calls = Counter[int]()  # told of each choice
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What begins a choice's stream."""
        return [self.chunk(index, {"role": "assistant", "content": ""})]

    def piece(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """What tells a piece of a choice."""
        deltas: list[dict[str, Any]] = []
        if piece.reasoning:
            deltas.append({"reasoning_content": piece.reasoning})
        deltas += self._divided(index, piece.text)
        if not piece.logprobs:
            return [self.chunk(index, delta) for delta in deltas]
        first, *more = deltas or [{"content": ""}]
        told = self.chunk(index, first, logprobs=piece.logprobs)
        return [told, *(self.chunk(index, delta) for delta in more)]

    def _divided(self, index: int, text: str, *, final: bool = False) -> list[dict[str, Any]]:
        """Text and calls of a piece, as OpenAI streams them."""
        reader, (tools, _) = self._readers[index], self._tools[index]
        if reader is None or tools is None:
            return [{"content": text}] if text else []
        deltas: list[dict[str, Any]] = []
        for part in reader.add(text, final=final):
            if isinstance(part, str):
                deltas.append({"content": part})
                continue
            if part.name:
                number = self._calls[index]
                deltas.append({"tool_calls": [{"index": number, **tools.call(number, part.name)}]})
                self._calls[index] += 1
            if part.arguments:
                function = {"arguments": part.arguments}
                deltas.append({"tool_calls": [{"index": self._calls[index] - 1, "function": function}]})
        return deltas

    def closing(self, index: int, outcome: Outcome) -> list[dict[str, Any]]:
        """What ends a choice's stream."""
        rest = [self.chunk(index, delta) for delta in self._divided(index, "", final=True)]
        called = bool(self._calls[index]) and outcome.finish_reason == "stop"
        return [*rest, self.chunk(index, {}, "tool_calls" if called else outcome.finish_reason)]

    def whole(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The answer in one piece: a choice for every reply."""
        choices = [self._told(index, outcome) for index, outcome in enumerate(outcomes)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": chat_usage(outcomes)}

    def _told(self, index: int, outcome: Outcome) -> dict[str, Any]:
        tools, begun = self._tools[index]
        text, calls = (outcome.text, []) if tools is None else tools.read(outcome.text, begun)
        message: dict[str, Any] = {**reply_message(text, outcome.reasoning), "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        return {
            "index": index,
            "message": message,
            "finish_reason": "tool_calls"
            if calls and outcome.finish_reason == "stop"
            else outcome.finish_reason,
            "logprobs": logprobs_body(outcome.logprobs) if self._logprobs else None,
        }

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: Sequence[Logprob] | None = None,
    ) -> dict[str, Any]:
        """A piece of one choice."""
        told = None if logprobs is None else logprobs_body(logprobs)
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": told}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def last(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The chunk behind the last one, for `stream_options.include_usage`."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": chat_usage(outcomes)}


# The first class that fits: status, OpenAI's type, code.
ERRORS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (ContextLengthError, 400, "invalid_request_error", "context_length_exceeded"),
    (DataError, 400, "invalid_request_error", "invalid_messages"),
    (ConfigError, 400, "invalid_request_error", "invalid_value"),
    (UnsupportedModelError, 400, "invalid_request_error", "unsupported"),
    (MemoryLimitError, 413, "invalid_request_error", "dialogue_too_large"),
    (NotFoundError, 404, "invalid_request_error", "not_found"),
    (BusyError, 503, "server_error", "busy"),
    (UpstreamError, 502, "server_error", "upstream_failed"),
    (StoreError, 503, "server_error", "store_unavailable"),
    (NumericalError, 500, "server_error", "numerical_error"),
    (SonicError, 500, "server_error", "failed"),
    (Exception, 500, "server_error", "internal_error"),
)


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The body of an error, as OpenAI's API has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _row(error: Exception) -> tuple[type[Exception], int, str, str]:
    return next(row for row in ERRORS if isinstance(error, row[0]))


def is_failure(error: Exception) -> bool:
    """Whether the server itself has failed: not its client, its store or another engine, and nobody has to wait."""
    return _row(error)[1] == 500


def error_answer(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error of the request under way."""
    _, status, kind, code = _row(error)
    if isinstance(error, BusyError) and error.yours:
        status, kind, code = 429, "rate_limit_error", "too_many_requests"
    # what was not raised on purpose may say anything: it goes to the log, not to the client
    hidden = f"the server failed: its log says why, under request {request_id.get()}"
    message = str(error) if isinstance(error, SonicError) else hidden
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    return status, error_body(message, kind, code), headers


def error_response(error: Exception) -> JSONResponse:
    """The answer for an error of the request under way."""
    status, body, headers = error_answer(error)
    return JSONResponse(body, status, headers)
