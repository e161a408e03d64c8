"""The HTTP side: routes, errors, streams. It never touches the model."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sonic_kv import __version__
from sonic_kv.errors import SonicError
from sonic_kv.options import parse_bytes
from sonic_kv.server import requests as work
from sonic_kv.server.access import Access
from sonic_kv.server.dialogue import check_request
from sonic_kv.server.metrics import Metrics
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.protocol import (
    ChatRequest,
    Completion,
    SessionChange,
    error_answer,
    error_body,
    session_body,
)
from sonic_kv.server.worker import Worker
from sonic_kv.session.options import SamplingConfig

log = logging.getLogger(__name__)
SESSION_ID = "x-session-id"
NAME = r"[A-Za-z0-9._:-]{1,128}"
PATIENCE = 8  # times the limit: so much of a body that is too large is read, and dropped
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


class Gone(Exception):
    """The client has closed the connection."""


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _events(
    worker: Worker, request: work.Request, receive: Receive
) -> AsyncIterator[str | work.Outcome]:
    """Pieces of text, then the outcome. Closed early, or left by its client, the request is cancelled.

    Raises:
        Gone: the client has left.
        SonicError: the request failed.
    """
    loop, events = asyncio.get_running_loop(), asyncio.Queue[str | work.Outcome]()
    request.on_text = lambda text: _tell(loop, events, text)
    request.on_end = lambda outcome: _tell(loop, events, outcome)
    worker.submit(request)
    gone = asyncio.create_task(_watch(receive))
    try:
        while True:
            event = asyncio.create_task(events.get())
            await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                raise Gone
            found = event.result()
            if isinstance(found, work.Outcome):
                if found.error is not None:
                    raise found.error
                yield found
                return
            yield found
    finally:
        gone.cancel()
        worker.cancel(request)


def _tell(loop: asyncio.AbstractEventLoop, events: "asyncio.Queue[Any]", event: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


class EventStream(Response):
    """Server-sent events, closed as soon as the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, body: AsyncIterator[str], headers: dict[str, str]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", **headers})
        del self.headers["content-length"]
        self._events = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            async for text in events:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class BodyLimit:
    """Refuses a request body above a number of bytes, before anything reads it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        while more and size <= PATIENCE * self._limit:  # who is cut off while sending may not see the answer
            message = await receive()
            if message["type"] != "http.request":
                return
            size += len(message.get("body", b""))
            if size <= self._limit:
                body += message.get("body", b"")
            more = message.get("more_body", False)
        if size > self._limit:
            error = error_body(
                f"the body is larger than {self._limit} bytes", "invalid_request_error", "body_too_large"
            )
            await JSONResponse(error, 413, {"Connection": "close"})(scope, receive, send)
            return
        first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)


class Counted:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.answered(route, message["status"])
            await send(message)

        await self._app(scope, receive, counting)


def make_app(
    worker: Worker,
    name: str,
    sampling: SamplingConfig,
    options: ServeOptions,
    keys: tuple[str, ...] = (),
) -> FastAPI:
    """The application.

    Args:
        worker: runs the requests; started and stopped with the application.
        name: of the model.
        sampling: what a request leaves out.
        keys: API keys; none: open to all.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    access, metrics, created = Access(keys), Metrics(worker), int(time.time())
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text}
        for status, text in {
            400: "the request cannot be carried out as it is",
            401: "no valid API key",
            404: "no such model or session",
            413: "the body or the dialogue is too large",
            429: "too many requests of this key wait",
            500: "the server failed",
            502: "the engine that decodes elsewhere cannot be reached, or failed: try again later",
            503: "too many requests wait, or the store cannot be reached: try again later",
        }.items()
    }
    app = FastAPI(
        title="sonic-kv",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=errors,
    )
    app.add_middleware(BodyLimit, limit=parse_bytes(options.max_body))
    if options.host in LOOPBACK:  # a page elsewhere must not reach in through a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "testserver"])
    app.add_middleware(Counted, metrics=metrics)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST", "PATCH"],
            allow_headers=["authorization", "content-type", SESSION_ID],
            expose_headers=[SESSION_ID],
        )

    def answer(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(body, status, headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, SonicError):
            log.error("request failed", exc_info=error)
        return answer(*error_answer(error))

    app.add_exception_handler(SonicError, failed)

    @app.exception_handler(Gone)
    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        body = error_body(str(error.detail), "invalid_request_error", None)
        return answer(error.status_code, body, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:])
        text = {"extra_forbidden": "this server does not support it"}.get(first["type"], first["msg"])
        message = f"{param}: {text}" if param else text
        return answer(400, error_body(message, "invalid_request_error", first["type"], param or None))

    async def allowed(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
        namespace = access.namespace(authorization)
        if namespace is None:
            raise HTTPException(
                401, "give a valid API key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )
        return namespace

    Namespace = Annotated[str, Depends(allowed)]

    def model_body() -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "sonic-kv",
            "max_model_len": worker.model.max_length,
            "compression_ratio": worker.default_ratio,
        }

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether requests are being taken."""
        return answer(200 if worker.alive else 503, {"status": "ok" if worker.alive else "stopped"})

    @app.get("/metrics")
    async def figures(_: Namespace) -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models(_: Namespace) -> JSONResponse:
        """The one model that is served."""
        return answer(200, {"object": "list", "data": [model_body()]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str, _: Namespace) -> JSONResponse:
        """The model, if it is the one that is served."""
        check_model(model)
        return answer(200, model_body())

    def check_model(asked: str) -> None:
        if asked != name:
            raise HTTPException(404, f"the model {asked!r} does not exist: this server has {name!r}")

    @app.post("/v1/chat/completions")
    async def chat(
        request: Request,
        body: ChatRequest,
        namespace: Namespace,
        session: Annotated[str | None, Header(alias=SESSION_ID, pattern=f"^{NAME}$")] = None,
    ) -> Response:
        """The reply to the last message of a dialogue, given whole; whole or as a stream of events."""
        start = time.perf_counter()
        check_model(body.model)
        messages = [message.plain() for message in body.messages]
        check_request(messages)
        asked = work.Request(
            namespace,
            messages,
            session,
            body.sonic.compression_ratio,
            body.sampling(sampling, options.max_reply_tokens),
        )
        events = _events(worker, asked, request.receive)
        completion = Completion(name)
        if not body.stream:
            async with aclosing(events):  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, work.Outcome):
                        metrics.replied(event, time.perf_counter() - start)
                        headers = {SESSION_ID: event.view.name} if event.view else {}
                        return answer(200, completion.whole(event), headers)
            raise AssertionError("a request ends with an outcome")
        first = await anext(events)  # an error until here has a status of its own
        metrics.first_token(time.perf_counter() - start)

        async def stream() -> AsyncIterator[str]:
            yield _event(completion.chunk({"role": "assistant", "content": ""}))
            event = first
            try:
                async with aclosing(events):  # type: ignore[type-var]
                    while not isinstance(event, work.Outcome):
                        yield _event(completion.chunk({"content": event}))
                        event = await anext(events)
            except Gone:
                return
            except Exception as error:
                if not isinstance(error, SonicError):
                    log.error("request failed", exc_info=error)
                yield _event(error_answer(error)[1])
                return
            metrics.replied(event, time.perf_counter() - start)
            yield _event(completion.chunk({}, event.finish_reason))
            if body.stream_options.include_usage:
                yield _event(completion.last(event))
            yield "data: [DONE]\n\n"

        return EventStream(stream(), {SESSION_ID: session} if session else {})

    async def see(request: Request, asked: work.Request) -> JSONResponse:
        async with aclosing(_events(worker, asked, request.receive)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, work.Outcome) and event.view is not None:
                    return answer(200, session_body(event.view))
        raise AssertionError("a session that is asked for is shown")

    Name = Annotated[str, Path(pattern=f"^{NAME}$")]

    @app.get("/v1/sessions/{session}")
    async def session(request: Request, session: Name, namespace: Namespace) -> JSONResponse:
        """A session: its messages, and what is kept of every segment."""
        return await see(request, work.Request(namespace, name=session))

    @app.patch("/v1/sessions/{session}")
    async def change(
        request: Request, session: Name, body: SessionChange, namespace: Namespace
    ) -> JSONResponse:
        """Compress a session from now on as asked; what is kept of it shrinks at once."""
        return await see(request, work.Request(namespace, name=session, ratio=body.compression_ratio))

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        text = files("sonic_kv.server").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(
            text, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        )

    return app
