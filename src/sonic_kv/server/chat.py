"""Replies to one request: its choices, told whole or as a stream."""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import Receive

from sonic_kv.errors import SonicError
from sonic_kv.server.answers import Completion, error_answer
from sonic_kv.server.requests import Outcome, Request
from sonic_kv.server.service import Service
from sonic_kv.server.stream import DONE, Event, EventStream, Gone, events, outcomes_of, server_sent

log = logging.getLogger(__name__)
SESSION_ID = "x-session-id"
Numbered = tuple[int, Event]


class Answering:
    """A request that is being answered.

    Args:
        asked: its choices, each a request to the worker.
        completion: the bodies of its answers.
        usage: tell the usage at the end of a stream.
    """

    def __init__(
        self, serving: Service, asked: Sequence[Request], completion: Completion, usage: bool
    ) -> None:
        self._serving, self._asked, self._completion, self._usage = serving, asked, completion, usage
        self._start = time.perf_counter()
        self._first: float | None = None  # seconds to the first text

    async def whole(self, receive: Receive) -> JSONResponse:
        """All choices in one answer.

        Raises:
            Gone: the client has left.
            SonicError: a choice failed.
        """
        outcomes = await outcomes_of(self._serving.worker, self._asked, receive)
        self._count(outcomes)
        view = outcomes[0].view
        return JSONResponse(self._completion.whole(outcomes), headers={SESSION_ID: view.name} if view else {})

    async def stream(self, receive: Receive) -> EventStream | Response:
        """The choices as they come. What fails before the first text has a status of its own.

        Raises:
            Gone: the client has left.
            SonicError: a choice failed.
        """
        found = events(self._serving.worker, self._asked, receive)
        first = await anext(found)
        self._first = time.perf_counter() - self._start
        name = self._asked[0].session
        return EventStream(self._told(first, found), {SESSION_ID: name} if name else {})

    async def _told(self, first: Numbered, rest: AsyncIterator[Numbered]) -> AsyncIterator[str]:
        """The choices as server-sent events."""
        ended: dict[int, Outcome] = {}
        try:
            async with aclosing(rest):  # type: ignore[type-var]
                for choice in range(len(self._asked)):
                    yield server_sent(*self._completion.opening(choice))
                yield self._piece(first, ended)
                async for event in rest:
                    yield self._piece(event, ended)
        except Gone:
            return
        except Exception as error:
            if not isinstance(error, SonicError):
                log.error("request failed", exc_info=error)
            self._serving.metrics.failed(error)
            yield server_sent(error_answer(error)[1])
            return
        outcomes = [ended[choice] for choice in range(len(self._asked))]
        self._count(outcomes)
        if self._usage:
            yield server_sent(self._completion.last(outcomes))
        yield DONE

    def _piece(self, event: Numbered, ended: dict[int, Outcome]) -> str:
        choice, found = event
        if isinstance(found, Outcome):
            ended[choice] = found
            return server_sent(*self._completion.closing(choice, found))
        return server_sent(*self._completion.piece(choice, found))

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        seconds = time.perf_counter() - self._start
        self._serving.metrics.replied(self._asked[0], outcomes, seconds, self._first)
