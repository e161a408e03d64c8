"""What every request passes before a route sees it: its id and its place in the figures, whose it is, its body."""

import asyncio
import logging
import re
import time
import uuid
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sonic_kv.errors import BusyError, SonicError
from sonic_kv.server.access import Access
from sonic_kv.server.answers import error_body, error_response
from sonic_kv.server.logs import request_id
from sonic_kv.server.metrics import Metrics
from sonic_kv.server.page import PATHS

log = logging.getLogger(__name__)
access_log = logging.getLogger("sonic_kv.access")
REQUEST_ID = "x-request-id"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = PATHS | frozenset({"/health", "/healthz", "/readyz", "/version", "/openapi.json"})  # without a key
PATIENCE = 8  # times the limit: so much of a body that is too large is read, and dropped
COURTESY = 64 << 10, 2.0  # bytes and seconds of a stranger's body that are read, and dropped


class Observed:
    """Gives a request its id, counts and logs its answer, and answers what failed unforeseen."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        name = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else uuid.uuid4().hex
        request_id.set(name)
        start, status = time.perf_counter(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = name
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception as error:
            if not isinstance(error, SonicError):
                log.error("request failed", exc_info=error)
            if status:
                raise  # its beginning is on its way: the connection ends
            await error_response(error)(scope, receive, observed)
        except asyncio.CancelledError:  # the time to end is over
            if status:
                raise
            await error_response(BusyError("the server is stopping: try again later"))(
                scope, receive, observed
            )
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - start
            self._metrics.answered(route, status)
            self._log(scope, status, seconds)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        client = (scope.get("client") or ("-",))[0]
        path = scope["path"].encode("unicode_escape").decode()  # no line of its own for a line break
        facts: dict[str, Any] = {"method": scope["method"], "path": path, "status": status, "client": client}
        access_log.info(
            "%s %s %d %.0f ms", scope["method"], path, status, 1000 * seconds, extra={"facts": facts}
        )


class Guard:
    """Turns strangers away, before a byte of what they send is kept.

    Args:
        access: knows the keys. Whose a request is stands in `request.state.namespace`.
        local: answer only to this machine's own names: a page elsewhere must not reach in through a name of its own.
    """

    def __init__(self, app: ASGIApp, access: Access, local: bool) -> None:
        self._app, self._access, self._local = app, access, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if self._local and _host(headers.get("host", "")) not in LOOPBACK:
                await _refuse(
                    scope, receive, send, 400, "this server answers to 127.0.0.1 and localhost only"
                )
                return
            namespace = self._access.namespace(headers.get("authorization"))
            if namespace is None and scope["path"] not in OPEN:
                text = "give a valid API key: Authorization: Bearer KEY"
                await _refuse(scope, receive, send, 401, text, {"WWW-Authenticate": "Bearer"})
                return
            scope.setdefault("state", {})["namespace"] = namespace
        await self._app(scope, receive, send)


def _host(header: str) -> str:
    """The name in a `Host` header, its port left out."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


async def _refuse(
    scope: Scope, receive: Receive, send: Send, status: int, text: str, headers: dict[str, str] | None = None
) -> None:
    size, seconds = COURTESY
    with suppress(asyncio.TimeoutError):  # who is cut off while sending may not see the answer
        await asyncio.wait_for(_read(receive, 0, size), seconds)
    error = error_body(text, "invalid_request_error", None)
    await JSONResponse(error, status, {**(headers or {}), "Connection": "close"})(scope, receive, send)


async def _read(receive: Receive, limit: int, most: int) -> tuple[bytearray, int] | None:
    """A body's first `limit` bytes, and how many it has, which are read up to `most`; None: the client has left."""
    body, size, more = bytearray(), 0, True
    while more and size <= most:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            body += part
        more = message.get("more_body", False)
    return body, size


class BodyLimit:
    """Reads a request's body, refusing one that is too large or takes too long.

    Args:
        limit: bytes.
        seconds: until the last of them must be there.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        close = {"Connection": "close"}
        try:
            read = await asyncio.wait_for(_read(receive, self._limit, PATIENCE * self._limit), self._seconds)
        except asyncio.TimeoutError:
            text = f"the body did not arrive within {self._seconds:g} s"
            error = error_body(text, "invalid_request_error", "body_too_slow")
            await JSONResponse(error, 408, close)(scope, receive, send)
            return
        if read is None:
            return
        body, size = read
        if size > self._limit:
            text = f"the body is larger than {self._limit} bytes"
            error = error_body(text, "invalid_request_error", "body_too_large")
            await JSONResponse(error, 413, close)(scope, receive, send)
            return
        first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)
