"""What the worker tells of a request, as it comes: events for a route, server-sent events for a client."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from sonic_kv.server.requests import Outcome, Request
from sonic_kv.server.worker import Worker
from sonic_kv.session.generate import Piece

Event = Piece | Outcome
DONE = "data: [DONE]\n\n"


class Gone(Exception):
    """The client has closed the connection."""


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def events(
    worker: Worker, requests: Sequence[Request], receive: Receive
) -> AsyncIterator[tuple[int, Event]]:
    """Pieces of replies and outcomes of requests, with their numbers, until each has its outcome.

    Closed early, or left by their client, the requests are cancelled; if one fails, so are the others.

    Raises:
        Gone: the client has left.
        SonicError: a request failed.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()

    def tell(number: int, event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, (number, event))

    gone, left = asyncio.create_task(_watch(receive)), len(requests)
    try:
        for number, request in enumerate(requests):
            request.on_piece = request.on_end = partial(tell, number)
            worker.submit(request)
        while left:
            coming = asyncio.create_task(queue.get())
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                raise Gone
            number, event = coming.result()
            if isinstance(event, Outcome):
                if event.error is not None:
                    raise event.error
                left -= 1
            yield number, event
    finally:
        gone.cancel()
        for request in requests:
            worker.cancel(request)


async def outcomes_of(worker: Worker, requests: Sequence[Request], receive: Receive) -> list[Outcome]:
    """How requests end.

    Raises:
        Gone: the client has left.
        SonicError: one failed.
    """
    found: dict[int, Outcome] = {}
    async with aclosing(events(worker, requests, receive)) as coming:  # type: ignore[type-var]
        async for number, event in coming:
            if isinstance(event, Outcome):
                found[number] = event
    return [found[number] for number in range(len(requests))]


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


def server_sent(*bodies: dict[str, Any]) -> str:
    """Server-sent events."""
    return "".join(f"data: {json.dumps(body, ensure_ascii=False)}\n\n" for body in bodies)
