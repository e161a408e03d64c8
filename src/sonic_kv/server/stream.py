"""What the worker tells of a request, as it comes: events for a route, server-sent events for a client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from sonic_kv.server.requests import Outcome, Request
from sonic_kv.server.worker import Worker

Event = str | Outcome
DONE = "data: [DONE]\n\n"


class Gone(Exception):
    """The client has closed the connection."""


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def events(worker: Worker, request: Request, receive: Receive) -> AsyncIterator[Event]:
    """Pieces of text, then the outcome. Closed early, or left by its client, the request is cancelled.

    Raises:
        Gone: the client has left.
        SonicError: the request failed.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def tell(event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, event)

    request.on_text = request.on_end = tell
    worker.submit(request)
    gone = asyncio.create_task(_watch(receive))
    try:
        while True:
            event = asyncio.create_task(queue.get())
            await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                raise Gone
            found = event.result()
            if isinstance(found, Outcome):
                if found.error is not None:
                    raise found.error
                yield found
                return
            yield found
    finally:
        gone.cancel()
        worker.cancel(request)


async def outcome_of(worker: Worker, request: Request, receive: Receive) -> Outcome:
    """How a request ends.

    Raises:
        Gone: the client has left.
        SonicError: the request failed.
    """
    async with aclosing(events(worker, request, receive)) as found:  # type: ignore[type-var]
        async for event in found:
            if isinstance(event, Outcome):
                return event
    raise AssertionError("a request ends with an outcome")


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


def server_sent(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
