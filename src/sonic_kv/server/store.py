"""Where dialogues outlive the process: named blobs in a folder, behind an fsspec URL, or in Redis.

Names are hashes, never a client's text. A blob is written whole or not at all. A store reads, writes and deletes
names of its own making only, in a place of its own.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger(__name__)
JUMP_SECONDS = 60.0  # that a clock may be off between two sweeps before it is said to have jumped
Kind = Literal["dialogue", "cache"]


@dataclass(frozen=True, order=True)
class Name:
    """What a blob is called.

    Attributes:
        owner: whose it is: 32 hexadecimal digits.
        kind: a dialogue, which nothing can bring back, or a cache, which can be made again.
        key: 64 hexadecimal digits.
    """

    owner: str
    kind: Kind
    key: str


@dataclass(frozen=True)
class Entry:
    """A blob that is there: when it was written, in seconds by the machine's clock, and its bytes."""

    name: Name
    written: float
    nbytes: int


@dataclass(frozen=True)
class Limits:
    """What a store may keep.

    Attributes:
        ttl: seconds after which a blob that was not written again is forgotten.
        nbytes: of all blobs together.
        per_owner: bytes of all blobs of one owner.
    """

    ttl: float
    nbytes: int
    per_owner: int | None = None


class Clock:
    """The machine's clock without its jumps: a wrong one must not make everything old at once."""

    def __init__(self) -> None:
        self._wall, self._steady, self._off = time.time(), time.monotonic(), 0.0

    def now(self) -> float:
        """Seconds, as `time.time()` would say them if nobody had set the clock since the start."""
        wall, steady = time.time(), time.monotonic()
        jump = (wall - self._wall) - (steady - self._steady)
        if abs(jump) > JUMP_SECONDS:
            self._off += jump
            log.warning("the clock jumped by %.0f s: the store counts ages as if it had not", jump)
        self._wall, self._steady = wall, steady
        return wall - self._off


class Store(ABC):
    """Named blobs. Every method raises `StoreError` if the store cannot be reached or written."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._clock = Clock()

    @abstractmethod
    def read(self, name: Name) -> bytes | None:
        """The blob, if there is one."""

    @abstractmethod
    def head(self, name: Name, nbytes: int) -> bytes:
        """The first bytes of a blob; none if it is not there."""

    @abstractmethod
    def first(self, names: Sequence[Name]) -> Name | None:
        """The first of `names` that has a blob."""

    @abstractmethod
    def write(self, name: Name, data: bytes) -> None:
        """Put a blob in place of an earlier one; it counts as used now."""

    @abstractmethod
    def delete(self, name: Name) -> None:
        """Forget a blob, if there is one."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """All blobs of this store."""

    def lock(self, shared: bool) -> None:  # noqa: B027
        """Keep others from using the same place until `close`; `shared`: those who also lock it so may.

        Raises:
            ConfigError: somebody else has it.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of the place."""

    def sweep(self, about: Callable[[Name], str] = lambda name: name.key[:12]) -> int:
        """Forget what is too old or too much: caches before dialogues, the oldest first.

        Args:
            about: what the log calls a dialogue.

        Returns:
            the bytes that remain.
        """
        there = self.entries()
        for entry, why in overdue(there, self.limits, self._clock.now()):
            if entry.name.kind == "dialogue":
                log.warning("the dialogue %s is forgotten: %s", about(entry.name), why)
            self.delete(entry.name)
            there.remove(entry)
        return sum(entry.nbytes for entry in there)

    def make_room(self, nbytes: int) -> bool:
        """Delete the oldest caches until so many bytes are free; whether any was there."""
        caches = sorted(
            (entry for entry in self.entries() if entry.name.kind == "cache"), key=lambda entry: entry.written
        )
        freed = 0
        for entry in caches:
            if freed >= nbytes:
                break
            self.delete(entry.name)
            freed += entry.nbytes
        return freed > 0


def overdue(entries: Sequence[Entry], limits: Limits, now: float) -> list[tuple[Entry, str]]:
    """What has to go, and why."""
    going = [
        (entry, "it has not been used for too long") for entry in entries if now - entry.written > limits.ttl
    ]
    gone = {entry.name for entry, _ in going}
    left = [entry for entry in entries if entry.name not in gone]
    left.sort(key=lambda entry: (entry.name.kind == "dialogue", entry.written))
    total, each = sum(entry.nbytes for entry in left), Counter[str]()
    for entry in left:
        each[entry.name.owner] += entry.nbytes
    for entry in left:
        owner = entry.name.owner
        if limits.per_owner is not None and each[owner] > limits.per_owner:
            going.append((entry, "its key has no more room in the store"))
        elif total > limits.nbytes:
            going.append((entry, "the store is full"))
        else:
            continue
        total -= entry.nbytes
        each[owner] -= entry.nbytes
    return going
