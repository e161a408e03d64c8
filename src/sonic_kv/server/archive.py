"""Sessions on the store: a small record a turn, the cache of a session that has become idle.

A record holds a session's steps, from which its state can always be made again; a turn is acknowledged when
its record is written. The cache beside it only saves that work. All input and output is in one thread, so
that a later write or delete never overtakes an earlier one.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from sonic_kv.errors import FileError
from sonic_kv.files import seal, unseal
from sonic_kv.server.dialogue import Step, as_json, from_json
from sonic_kv.server.shelf import Node
from sonic_kv.server.store import Store

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A session's cache as it was read: what `ChatSession.thaw` takes, and where it comes from."""

    key: str
    parent: str | None
    name: str
    header: dict[str, Any]
    tensors: dict[str, Tensor]


class Archive:
    """Reads and writes sessions; every method returns at once.

    Args:
        store: where they are kept; None: nowhere, and nothing is found.
        done: called, in any thread, when something has been done.
    """

    def __init__(self, store: Store | None, done: Callable[[], None]) -> None:
        self._store, self._done = store, done
        self._thread = ThreadPoolExecutor(1, "sonic-kv-store")

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    def _submit(self, work: Callable[[Store], T], nothing: T) -> "Future[T]":
        store = self._store
        future = self._thread.submit(lambda: nothing if store is None else work(store))
        future.add_done_callback(lambda _: self._done())
        return future

    def record(self, node: Node) -> "Future[None]":
        """Write which session this is and what was said in it."""
        header = {"key": node.key, "name": node.name, "steps": [as_json(step) for step in node.steps]}
        return self._submit(lambda store: store.write(node.label, seal("dialogue", header, {})), None)

    def steps(self, label: str) -> "Future[list[Step] | None]":
        """The steps of a named session, if there is a record of it."""

        def read(store: Store) -> list[Step] | None:
            data = store.read(label)
            if data is None:
                return None
            try:
                header, _ = unseal(data, "dialogue", f"record {label}")
                return [from_json(step) for step in header["steps"]]
            except (FileError, LookupError, TypeError, ValueError) as error:
                log.warning("a session is forgotten: %s", error)
                return None

        return self._submit(read, None)

    def keep(self, node: Node) -> "Future[None]":
        """Write a session's cache."""
        header, tensors = node.session.freeze()
        header |= {"key": node.key, "name": node.name, "parent": node.parent}
        return self._submit(lambda store: store.write(node.key, seal("session", header, tensors)), None)

    def find(self, keys: Sequence[str]) -> "Future[Found | None]":
        """The cache with the first of these keys that there is; one that is damaged counts as missing."""

        def read(store: Store) -> Found | None:
            key = store.first(keys)
            data = None if key is None else store.read(key)
            if key is None or data is None:
                return None
            try:
                header, tensors = unseal(data, "session", f"session {key}")
                if header["key"] != key:
                    raise FileError(f"session {key} holds the cache of another")
                return Found(key, header["parent"], str(header["name"]), header, tensors)
            except (FileError, LookupError) as error:
                log.warning("a cache is made again: %s", error)
                store.delete(key)
                return None

        return self._submit(read, None)

    def forget(self, *keys: str | None) -> "Future[None]":
        """Delete what is stored under these keys."""

        def delete(store: Store) -> None:
            for key in filter(None, keys):
                store.delete(key)

        return self._submit(delete, None)

    def sweep(self) -> "Future[int]":
        """Forget what is too old or too much; the bytes that remain."""
        return self._submit(lambda store: store.sweep(), 0)

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.shutdown()
