"""Sessions on the store: a small record a turn, the cache of a session that has become idle.

A record holds a session's steps, from which its state can always be made again; a turn is acknowledged when
its record is written. The cache beside it only saves that work. All input and output is in one thread, so
that a later write or delete never overtakes an earlier one.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from sonic_kv.errors import FileError, SonicError, StoreError
from sonic_kv.files import header_bytes, seal, unseal, unseal_header
from sonic_kv.server.dialogue import Step, Summary, as_json, check_steps, from_json, summary
from sonic_kv.server.shelf import Node
from sonic_kv.server.store import Kind, Name, Store
from sonic_kv.session.state import state_of

T = TypeVar("T")
log = logging.getLogger(__name__)
SLOW_SECONDS = 0.5  # after which a store that fails hangs, and does not just refuse
PAUSE_SECONDS = 5.0  # for which a store that hangs is left alone
LISTED = 1000  # dialogues in a list, at most
MOST_HEADER = 64 << 20  # bytes
ROOM = 16  # times the size of a record: so much of the caches goes if there is no room for it


@dataclass(frozen=True)
class Found:
    """A session's cache as it was read: what `dialogue_of` takes, and where it comes from."""

    key: str
    parent: str | None
    name: str
    header: dict[str, Any]
    tensors: dict[str, Tensor]


class Archive:
    """Reads and writes sessions; every method returns at once.

    A store that hangs is asked by one operation at a time, and then left alone for a while: the others fail at once.

    Args:
        store: where they are kept; None: nowhere, and nothing is found.
        done: called, in any thread, when something has been done.
    """

    def __init__(self, store: Store | None, done: Callable[[], None]) -> None:
        self._store, self._done = store, done
        self._thread = ThreadPoolExecutor(1, "sonic-kv-store")
        self._until = 0.0  # it is left alone

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    @property
    def hangs(self) -> bool:
        """Whether the store is left alone, because it did not answer."""
        return time.monotonic() < self._until

    def _submit(self, work: Callable[[Store], T], nothing: T, *, may_fail: bool = False) -> "Future[T]":
        future = self._thread.submit(self._try if may_fail else self._do, work, nothing)
        future.add_done_callback(lambda _: self._done())
        return future

    def _try(self, work: Callable[[Store], T], nothing: T) -> T:
        try:
            return self._do(work, nothing)
        except StoreError as error:
            log.warning("caches are made again: %s", error)
            return nothing

    def _do(self, work: Callable[[Store], T], nothing: T) -> T:
        if self._store is None:
            return nothing
        if self.hangs:
            raise StoreError("the store does not answer: it is tried again in a few seconds")
        start = time.monotonic()
        try:
            return work(self._store)
        except StoreError:
            if time.monotonic() - start > SLOW_SECONDS:
                self._until = time.monotonic() + PAUSE_SECONDS
            raise

    def record(self, node: Node) -> "Future[None]":
        """Write which session this is and what was said in it."""
        header = {"key": node.key, "name": node.name, "steps": [as_json(step) for step in node.steps]}
        name, data = _name(node.label, "dialogue"), seal("dialogue", header, {})

        def write(store: Store) -> None:
            try:
                store.write(name, data)
            except StoreError:  # no room, perhaps: what can be made again gives way
                if self.hangs or not store.make_room(ROOM * len(data)):
                    raise
                store.write(name, data)

        return self._submit(write, None)

    def steps(self, label: str) -> "Future[list[Step] | None]":
        """The steps of a named session, if there is a record of it."""

        def read(store: Store) -> list[Step] | None:
            data = store.read(_name(label, "dialogue"))
            if data is None:
                return None
            try:
                header, _ = unseal(data, "dialogue", f"record {label}")
                return check_steps([from_json(step) for step in header["steps"]])
            except (SonicError, LookupError, TypeError, ValueError) as error:
                log.warning("a dialogue is forgotten, its record is damaged: %s", error)
                return None

        return self._submit(read, None)

    def keep(self, node: Node) -> "Future[None]":
        """Write a session's cache, unless its dialogue is erased."""
        header, tensors = state_of(node.session)
        header |= {"key": node.key, "name": node.name, "parent": node.parent}

        def write(store: Store) -> None:
            if store.first([_name(node.label, "dialogue")]) is not None:
                store.write(_name(node.key, "cache"), seal("session", header, tensors))

        return self._submit(write, None)

    def find(self, keys: Sequence[str]) -> "Future[Found | None]":
        """The cache with the first of these keys that there is.

        One that is damaged counts as missing, and so do all while the store fails: a cache can be made again.
        """

        def read(store: Store) -> Found | None:
            name = store.first([_name(key, "cache") for key in keys])
            data = None if name is None else store.read(name)
            if name is None or data is None:
                return None
            key = f"{name.owner}-{name.key}"
            try:
                header, tensors = unseal(data, "session", f"session {key}")
                if header["key"] != key:
                    raise FileError(f"session {key} holds the cache of another")
                return Found(key, header["parent"], str(header["name"]), header, tensors)
            except (FileError, LookupError) as error:
                log.warning("a cache is made again: %s", error)
                store.delete(name)
                return None

        return self._submit(read, None, may_fail=True)

    def forget(self, *keys: str | None) -> "Future[None]":
        """Delete the caches with these keys."""

        def delete(store: Store) -> None:
            for key in filter(None, keys):
                store.delete(_name(key, "cache"))

        return self._submit(delete, None)

    def listed(self, owner: str, here: Mapping[str, Summary]) -> "Future[list[Summary]]":
        """The dialogues of an owner: those that are `here`, by name, and those on the store, the newest first."""

        def read(store: Store) -> list[Summary]:
            entries = [e for e in store.entries() if e.name.owner == owner and e.name.kind == "dialogue"]
            entries.sort(key=lambda entry: -entry.written)
            found = dict[str, Summary]()
            for entry in entries[:LISTED]:
                try:
                    header, _ = unseal(store.read(entry.name) or b"", "dialogue", "record")
                    steps = [from_json(step) for step in header["steps"]]
                    found[str(header["name"])] = summary(str(header["name"]), steps, entry.written)
                except (SonicError, LookupError, TypeError, ValueError):
                    continue
            return list((found | {**here, **found}).values())

        return self._submit(read, list(here.values()))

    def erase(self, label: str, name: str, found: bool) -> "Future[bool]":
        """Forget a dialogue and all caches of it; whether there was one, or it was `found` elsewhere."""
        owner = label.partition("-")[0]

        def delete(store: Store) -> bool:
            record = _name(label, "dialogue")
            there = store.read(record) is not None
            store.delete(record)
            for entry in store.entries():
                if entry.name.owner == owner and entry.name.kind == "cache":
                    self._submit(partial(_delete_if, cache=entry.name, name=name), None)
            return there or found

        return self._submit(delete, found)

    def sweep(self) -> "Future[int]":
        """Forget what is too old or too much; the bytes that remain."""
        return self._submit(lambda store: store.sweep(lambda name: _called(store, name)), 0)

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.shutdown()
        if self._store is not None:
            self._store.close()


def _name(key: str, kind: Kind) -> Name:
    """What the store calls a label or a key."""
    owner, _, rest = key.partition("-")
    return Name(owner, kind, rest)


def _delete_if(store: Store, cache: Name, name: str) -> None:
    """Delete a cache if it is of the session with this name."""
    size = min(header_bytes(store.head(cache, 8)), MOST_HEADER)
    try:
        mine = unseal_header(store.head(cache, size), "cache").get("name") == name
    except FileError:
        mine = True  # nobody can say whose it is, and it can be made again
    if mine:
        store.delete(cache)


def _called(store: Store, name: Name) -> str:
    """What a client calls a dialogue."""
    try:
        header, _ = unseal(store.read(name) or b"", "dialogue", "record")
        return repr(str(header["name"]))
    except (SonicError, LookupError):
        return name.key[:12]
