"""A store in Redis: keys with a prefix of their own, and a sorted set that says when each was written."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sonic_kv.errors import ConfigError, StoreError
from sonic_kv.server.store import Entry, Limits, Name, Store, log

PREFIX = "sonic-kv:2:"
WRITTEN = f"{PREFIX}written"  # the sorted set
NAME = re.compile(r"([0-9a-f]{32}):(dialogue|cache):([0-9a-f]{64})")
TIMEOUT = 2.0  # seconds


class RedisStore(Store):
    """Keys in Redis. Caches also expire there by themselves; dialogues are deleted by the sweep, which tells of it."""

    def __init__(self, url: str, limits: Limits) -> None:
        import redis

        super().__init__(limits)
        self._ttl = max(int(limits.ttl * 1000), 1)
        try:
            self._redis = redis.Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        except ValueError as error:
            raise ConfigError(f"store {url!r} cannot be opened: {error}") from error
        self._error: type[Exception] = redis.RedisError
        with self._errors():
            self._redis.ping()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            reason = " ".join(str(error).split())
            log.error("the store in Redis failed: %s", reason)
            raise StoreError("the store in Redis failed") from error

    def read(self, name: Name) -> bytes | None:
        with self._errors():
            found: Any = self._redis.get(_key(name))
            return None if found is None else bytes(found)

    def head(self, name: Name, nbytes: int) -> bytes:
        with self._errors():
            found: Any = self._redis.getrange(_key(name), 0, nbytes - 1)
            return bytes(found)

    def first(self, names: Sequence[Name]) -> Name | None:
        with self._errors():
            asked = self._redis.pipeline(transaction=False)
            for name in names:
                asked.exists(_key(name))
            found = asked.execute() if names else []
            return next((name for name, there in zip(names, found, strict=True) if there), None)

    def write(self, name: Name, data: bytes) -> None:
        with self._errors():
            asked = self._redis.pipeline()
            asked.set(_key(name), data, px=self._ttl if name.kind == "cache" else None)
            asked.zadd(WRITTEN, {_member(name): time.time()})
            asked.execute()

    def delete(self, name: Name) -> None:
        with self._errors():
            asked = self._redis.pipeline()
            asked.delete(_key(name))
            asked.zrem(WRITTEN, _member(name))
            asked.execute()

    def entries(self) -> list[Entry]:
        with self._errors():
            written: Any = self._redis.zrange(WRITTEN, 0, -1, withscores=True)
            named = [(NAME.fullmatch(member.decode()), when) for member, when in written]
            names = [(Name(m[1], m[2], m[3]), when) for m, when in named if m is not None]  # type: ignore[arg-type]
            asked = self._redis.pipeline(transaction=False)
            for name, _ in names:
                asked.strlen(_key(name))
            sizes = asked.execute() if names else []
            found = []
            for (name, when), size in zip(names, sizes, strict=True):
                if size:
                    found.append(Entry(name, when, size))
                    continue
                if name.kind == "dialogue":
                    log.warning("Redis has dropped the dialogue %s by itself", name.key[:12])
                self._redis.zrem(WRITTEN, _member(name))
        return found


def _member(name: Name) -> str:
    return f"{name.owner}:{name.kind}:{name.key}"


def _key(name: Name) -> str:
    return PREFIX + _member(name)
