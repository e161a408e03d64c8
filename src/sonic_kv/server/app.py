"""The application: routes, what stands before them, and how errors are told. It never touches the model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from sonic_kv import __version__
from sonic_kv.errors import SonicError
from sonic_kv.options import parse_bytes
from sonic_kv.server.access import Access
from sonic_kv.server.answers import error_body, error_response
from sonic_kv.server.chat import SESSION_ID
from sonic_kv.server.guard import LOOPBACK, REQUEST_ID, BodyLimit, Guard, Observed
from sonic_kv.server.metrics import Metrics
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.protocol import RefusedError
from sonic_kv.server.routes import router
from sonic_kv.server.service import Service
from sonic_kv.server.stream import Gone
from sonic_kv.server.words import in_words
from sonic_kv.server.worker import Worker
from sonic_kv.session.options import SamplingConfig

BODY_SECONDS = 30.0
ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request cannot be carried out as it is"},
    401: {"description": "no valid API key"},
    404: {"description": "no such model or session"},
    408: {"description": "the body took too long to arrive"},
    413: {"description": "the body or the dialogue is too large"},
    429: {"description": "too many requests of this key wait"},
    500: {"description": "the server failed"},
    502: {"description": "the engine that decodes elsewhere cannot be reached, or failed: try again later"},
    503: {"description": "too many requests wait, or the store cannot be reached: try again later"},
}


async def failed(_: Request, error: Exception) -> JSONResponse:
    """Answer an error that was raised on purpose."""
    return error_response(error)


async def gone(_: Request, error: Exception) -> Response:
    """Answer a client that has left: nobody reads it."""
    return Response(status_code=499)


async def refused(request: Request, error: Exception) -> JSONResponse:
    """Answer what HTTP itself refuses, a path that does not exist for one."""
    assert isinstance(error, HTTPException)
    allowed = Headers(dict(error.headers or {})).get("allow", "another method")
    words = {
        "Not Found": "there is nothing at this path: docs/guides/serving.md names all",
        "Method Not Allowed": f"{request.method} is not possible at this path: use {allowed}",
        "There was an error parsing the body": "the body is no JSON in UTF-8, or nested too deeply",
    }
    detail = str(error.detail)
    body = error_body(words.get(detail, detail), "invalid_request_error", None)
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


async def invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that is none of ours, naming the first thing that is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message, param = in_words(first)
    if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        message += "; is it JSON? then send the header Content-Type: application/json"
    return JSONResponse(error_body(message, "invalid_request_error", first["type"], param), 400)


async def unsupported(_: Request, error: Exception) -> JSONResponse:
    """Answer a request for what this server does not do."""
    assert isinstance(error, RefusedError)
    return JSONResponse(error_body(str(error), "invalid_request_error", "unsupported", error.param), 400)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the worker as long as the application."""
    worker: Worker = app.state.service.worker
    worker.start()
    yield
    await asyncio.to_thread(worker.stop)


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
    metrics = Metrics(worker)
    app = FastAPI(
        title="sonic-kv",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ANSWERS,
        exception_handlers={
            SonicError: failed,
            Gone: gone,
            HTTPException: refused,
            RequestValidationError: invalid,
            RefusedError: unsupported,
        },
    )
    app.state.service = Service(worker, name, sampling, options, metrics)
    app.include_router(router)
    # what is added last comes first
    app.add_middleware(BodyLimit, limit=parse_bytes(options.max_body), seconds=BODY_SECONDS)
    app.add_middleware(Guard, access=Access(keys), local=options.host in LOOPBACK)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],  # as asked for: clients send headers of their own
            expose_headers=[SESSION_ID, REQUEST_ID, "retry-after"],
        )
    app.add_middleware(Observed, metrics=metrics)
    return app
