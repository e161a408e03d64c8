"""The bodies of requests and answers, as OpenAI's API has them, and the one table of errors."""

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

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
from sonic_kv.session.options import SamplingConfig

RETRY_AFTER = "2"  # seconds


class Body(BaseModel):
    """A JSON object whose fields are all known; one that is null counts as left out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class TextPart(Body):
    """A part of a message: text is the only kind."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message of the dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """The message as the library knows it."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


Ratio = Annotated[float, Field(ge=0.0, lt=1.0, description="fraction of the history's entries removed")]


class SonicOptions(Body):
    """What this server understands beyond OpenAI's API."""

    compression_ratio: Ratio | None = None


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool = False


class ChatRequest(Body):
    """`POST /v1/chat/completions`. What a request leaves out comes from the server's own settings."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1, le=1, description="1 only")] = 1
    presence_penalty: Annotated[float, Field(ge=0.0, le=0.0, description="0 only")] = 0.0
    frequency_penalty: Annotated[float, Field(ge=0.0, le=0.0, description="0 only")] = 0.0
    logprobs: Annotated[Literal[False], Field(description="false only")] = False
    user: Annotated[str, Field(description="accepted, not used")] | None = None
    sonic: SonicOptions = SonicOptions()

    def sampling(self, default: SamplingConfig, most: int) -> SamplingConfig:
        """How the reply is generated.

        Raises:
            ConfigError: more tokens are asked for than the server makes.
        """
        asked = self.max_completion_tokens or self.max_tokens or default.max_new_tokens
        if asked > most:
            raise ConfigError(f"max_tokens={asked} is more than this server's limit of {most}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or default.stop)
        return SamplingConfig(
            max_new_tokens=asked,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            stop=stop,
            seed=default.seed if self.seed is None else self.seed,
        )


class SessionChange(Body):
    """`PATCH /v1/sessions/{id}`: compression from now on; what is kept shrinks at once."""

    compression_ratio: Ratio


def sonic_usage(view: View | None) -> dict[str, Any]:
    """What the session takes: logical tokens, entries kept, bytes, and the share that is not kept."""
    if view is None:
        return {"session_id": None}
    stats = view.stats
    return {
        "session_id": view.name,
        "compression_ratio": view.compression_ratio,
        "logical_tokens": stats.logical_tokens,
        "entries": stats.entries,
        "bytes": stats.bytes,
        "full_bytes": stats.full_bytes,
        "saved": round(1.0 - stats.bytes / stats.full_bytes, 4) if stats.full_bytes else 0.0,
    }


def usage(outcome: Outcome) -> dict[str, Any]:
    """Tokens read and written for a reply, and the session behind it."""
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": outcome.cached_tokens},
        "sonic": sonic_usage(outcome.view),
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


class Completion:
    """The answers to one chat request, whole or in chunks."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """The answer in one piece."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": outcome.text, "refusal": None},
            "finish_reason": outcome.finish_reason,
            "logprobs": None,
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage(outcome)}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of the answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def last(self, outcome: Outcome) -> dict[str, Any]:
        """The chunk behind the last one, for `stream_options.include_usage`."""
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage(outcome),
        }


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


def error_answer(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error of the request under way."""
    _, status, kind, code = next(row for row in ERRORS if isinstance(error, row[0]))
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
