"""The routes of the server. None touches the model: the worker does."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from sonic_kv import __version__
from sonic_kv.errors import NotFoundError, SonicError
from sonic_kv.server import requests as work
from sonic_kv.server.answers import Completion, error_answer, session_body
from sonic_kv.server.dialogue import check_length, check_request
from sonic_kv.server.metrics import Metrics
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.protocol import ChatRequest, SessionChange, TextRequest
from sonic_kv.server.stream import DONE, Event, EventStream, Gone, events, outcomes_of, server_sent
from sonic_kv.server.worker import Worker
from sonic_kv.session.options import SamplingConfig

T = TypeVar("T")
log = logging.getLogger(__name__)
SESSION_ID = "x-session-id"
NAME = r"[A-Za-z0-9._:-]{1,128}"
POSITIONS = 8  # times the model's: so many tokens a dialogue may have, unless the options say otherwise
PAGE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Service:
    """What the routes share: who does the work, and how it is asked for.

    Attributes:
        name: of the model.
        sampling: what a request leaves out.
    """

    worker: Worker
    name: str
    sampling: SamplingConfig
    options: ServeOptions
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def most_tokens(self) -> int:
        """Tokens that a dialogue may have."""
        return self.options.max_dialogue_tokens or POSITIONS * self.worker.model.max_length

    def check_model(self, asked: str) -> None:
        """Raise a 404 unless this model is asked for, or none."""
        if asked and asked not in (self.name, *self.options.served_model_name):
            raise HTTPException(404, f"the model {asked!r} does not exist: this server has {self.name!r}")

    def model_body(self) -> dict[str, Any]:
        """The model, as `GET /v1/models` shows it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "sonic-kv",
            "max_model_len": self.worker.model.max_length,
            "compression_ratio": self.worker.default_ratio,
        }


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


def namespace_of(request: Request) -> str:
    """Whose a request is, as the guard has found."""
    namespace: str = request.state.namespace
    return namespace


Serving = Annotated[Service, Depends(service_of)]
Namespace = Annotated[str, Depends(namespace_of)]
Name = Annotated[str, Path(pattern=f"^{NAME}$")]
Session = Annotated[str | None, Header(alias=SESSION_ID, pattern=f"^{NAME}$")]
router = APIRouter()


@router.get("/healthz")
async def healthz(serving: Serving) -> JSONResponse:
    """Whether requests are being taken."""
    alive = serving.worker.alive
    return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)


@router.get("/health")
async def health(serving: Serving) -> Response:
    """`/healthz`, as vLLM has it."""
    return Response(status_code=200 if serving.worker.alive else 503)


@router.get("/readyz")
async def readyz(serving: Serving) -> JSONResponse:
    """Whether requests can be answered now: the store is reached, and the server is not about to end."""
    worker = serving.worker
    status = "stopped" if not worker.alive else "ok" if worker.ready else "the store does not answer"
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


@router.get("/version")
async def version() -> JSONResponse:
    """Which sonic-kv this is."""
    return JSONResponse({"version": __version__})


@router.post("/tokenize")
async def tokenize(body: TextRequest, serving: Serving) -> JSONResponse:
    """The token ids of a text, or of a dialogue in the model's chat format."""
    serving.check_model(body.model)
    model = serving.worker.model
    messages = [message.plain() for message in body.messages]

    def tokens() -> list[int]:
        if not messages:
            found: list[int] = model.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens)[
                "input_ids"
            ]
            return found
        start = model.format.generation_prompt() if body.add_generation_prompt else []
        return model.format.encode(messages).token_ids + start

    found = await asyncio.to_thread(tokens)
    return JSONResponse({"tokens": found, "count": len(found), "max_model_len": model.max_length})


@router.get("/metrics")
async def figures(serving: Serving) -> Response:
    """Figures for Prometheus."""
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def models(serving: Serving) -> JSONResponse:
    """The one model that is served."""
    return JSONResponse({"object": "list", "data": [serving.model_body()]})


@router.get("/v1/models/{model:path}")
async def model(model: str, serving: Serving) -> JSONResponse:
    """The model, if it is the one that is served."""
    serving.check_model(model)
    return JSONResponse(serving.model_body())


@router.post("/v1/chat/completions")
async def chat(
    request: Request, body: ChatRequest, serving: Serving, namespace: Namespace, session: Session = None
) -> Response:
    """The reply to a dialogue, given whole; whole or as a stream of events."""
    start = time.perf_counter()
    serving.check_model(body.model)
    body.check()
    messages = [message.plain() for message in body.messages]
    check_request(messages)
    await asyncio.to_thread(check_length, serving.worker.model, messages, serving.most_tokens)
    asked = []
    for choice in range(body.n):  # each choice is a dialogue of its own; the first has the name
        sampling = body.sampling(serving.sampling, serving.options.max_reply_tokens, choice)
        name = session if choice == 0 else uuid.uuid4().hex
        asked.append(work.Request(namespace, messages, name, body.sonic.compression_ratio, sampling))
    completion = Completion(serving.name)
    if not body.stream:
        outcomes = await outcomes_of(serving.worker, asked, request.receive)
        serving.metrics.replied(outcomes, time.perf_counter() - start)
        view = outcomes[0].view
        return JSONResponse(completion.whole(outcomes), headers={SESSION_ID: view.name} if view else {})
    found = events(serving.worker, asked, request.receive)
    first = await anext(found)  # an error until here has a status of its own
    serving.metrics.first_token(time.perf_counter() - start)
    pieces = _pieces(serving, body, completion, _behind(first, found), start)
    return EventStream(pieces, {SESSION_ID: asked[0].session or ""})


async def _behind(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    async with aclosing(rest):  # type: ignore[type-var]
        yield first
        async for one in rest:
            yield one


async def _pieces(
    serving: Service,
    body: ChatRequest,
    completion: Completion,
    found: AsyncIterator[tuple[int, Event]],
    start: float,
) -> AsyncIterator[str]:
    """The replies as server-sent events."""
    ended: dict[int, work.Outcome] = {}
    for choice in range(body.n):
        yield server_sent(completion.chunk(choice, {"role": "assistant", "content": ""}))
    try:
        async with aclosing(found):  # type: ignore[type-var]
            async for choice, event in found:
                if isinstance(event, work.Outcome):
                    ended[choice] = event
                    yield server_sent(completion.chunk(choice, {}, event.finish_reason))
                else:
                    yield server_sent(completion.chunk(choice, {"content": event}))
    except Gone:
        return
    except Exception as error:
        if not isinstance(error, SonicError):
            log.error("request failed", exc_info=error)
        serving.metrics.failed(error)
        yield server_sent(error_answer(error)[1])
        return
    outcomes = [ended[choice] for choice in range(body.n)]
    serving.metrics.replied(outcomes, time.perf_counter() - start)
    if body.stream_options.include_usage:
        yield server_sent(completion.last(outcomes))
    yield DONE


async def _see(serving: Service, request: Request, asked: work.Request) -> JSONResponse:
    (outcome,) = await outcomes_of(serving.worker, [asked], request.receive)
    assert outcome.view is not None, "a session that is asked for is shown"
    return JSONResponse(session_body(outcome.view))


@router.get("/v1/sessions")
async def sessions(serving: Serving, namespace: Namespace) -> JSONResponse:
    """The sessions of the caller's key, the newest first."""
    found = await asyncio.wrap_future(serving.worker.sessions(namespace))
    data = [
        {"object": "session", "id": one.name, "title": one.title, "messages": one.messages, "used": one.used}
        for one in found
    ]
    return JSONResponse({"object": "list", "data": data})


@router.delete("/v1/sessions/{session}")
async def erase(session: Name, serving: Serving, namespace: Namespace) -> JSONResponse:
    """Forget a session: its messages, its record and its caches."""
    if not await asyncio.wrap_future(serving.worker.erase(namespace, session)):
        raise NotFoundError(f"there is no session {session!r}")
    return JSONResponse({"object": "session.deleted", "id": session, "deleted": True})


@router.get("/v1/sessions/{session}")
async def session(request: Request, session: Name, serving: Serving, namespace: Namespace) -> JSONResponse:
    """A session: its messages, and what is kept of every segment."""
    return await _see(serving, request, work.Request(namespace, name=session))


@router.patch("/v1/sessions/{session}")
async def change(
    request: Request, session: Name, body: SessionChange, serving: Serving, namespace: Namespace
) -> JSONResponse:
    """Compress a session from now on as asked; what is kept of it shrinks at once."""
    return await _see(serving, request, work.Request(namespace, name=session, ratio=body.compression_ratio))


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The page for people."""
    text = files("sonic_kv.server").joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers=PAGE)
