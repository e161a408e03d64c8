"""Connections: not more than there is room for, none that only waits, and an end in time."""

import asyncio
import logging
import os
import socket
import sys
import threading
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sonic_kv.errors import ConfigError
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.worker import Worker

log = logging.getLogger(__name__)
HEAD_SECONDS = 10.0  # that a request's head may take to arrive
AT_ONCE = 32  # connections that are accepted before the oldest are closed
BACKLOG = 512  # connections that the system lets wait until they are accepted
SPARE = (
    4 * AT_ONCE
)  # open files beside connections: new ones, before and while others are closed, and the store's
DRAINED, CUT = 0.8, 0.9  # of the time to end: replies have so much, then connections so much


class Connection(H11Protocol):
    """One connection. If there are too many, the one that has kept the server waiting longest is closed."""

    most = 512

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and close another connection if this is one too many."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._slow: asyncio.TimerHandle | None = None
        self._expect_head()
        there = [c for c in self.connections if isinstance(c, Connection) and not c.transport.is_closing()]
        if len(there) > self.most:
            waiting = [one for one in there if one.waits and one is not self]
            if waiting:
                log.warning("more than %d connections: the idlest one is closed", self.most)
                min(waiting, key=lambda one: one._since).transport.abort()
            else:
                log.warning("more than %d connections with requests under way: one is refused", self.most)
                self.transport.abort()

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: no request, or only a part of one, has arrived."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; a request's head must be complete in time."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self._expect_head()
        else:
            self._since = self.loop.time()
            self._forget_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._slow is None:
            self._slow = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _forget_head(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


def most_connections(asked: int) -> int:
    """So many connections as are asked for, or as this process may have files open."""
    if sys.platform == "win32":
        return asked
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return asked if files == resource.RLIM_INFINITY else max(min(asked, files - SPARE), 8)


class HttpServer(uvicorn.Server):
    """Serves an application, and ends in time.

    Told to end, it takes no more connections, gives running replies most of `drain_seconds`, then ends them with an
    error, and has what is not on the store yet written. Whoever still holds it up then is left behind.
    """

    def __init__(self, app: FastAPI, worker: Worker, options: ServeOptions) -> None:
        self._worker, self._seconds = worker, options.drain_seconds
        limited: Any = type("Limited", (Connection,), {"most": most_connections(options.max_connections)})
        config = uvicorn.Config(
            app,
            http=limited,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=AT_ONCE,
            ssl_certfile=options.tls_certificate,
            ssl_keyfile=options.tls_key,
            timeout_graceful_shutdown=CUT * self._seconds,  # type: ignore[arg-type]
        )
        try:
            config.load()
        except OSError as error:  # ssl's errors, too
            raise ConfigError(f"cannot use the certificate {options.tls_certificate}: {error}") from error
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin; asyncio lets as few wait as it accepts at once."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, within the time that there is."""
        last = threading.Timer(self._seconds, _leave)
        last.daemon = True
        last.start()
        halt = asyncio.get_running_loop().call_later(DRAINED * self._seconds, self._worker.halt)
        await super().shutdown(sockets)
        halt.cancel()
        last.cancel()


def _leave() -> None:
    log.error("the time to end is over: what was not written yet will be made again from its dialogue")
    os._exit(1)
