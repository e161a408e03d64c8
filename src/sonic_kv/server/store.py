"""Where dialogues outlive the process: named blobs in a folder, behind an fsspec URL, or in Redis.

Names are hashes, never a client's text. A blob is written whole or not at all.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sonic_kv.errors import ConfigError, FileError, StoreError
from sonic_kv.files import write_atomic

SUFFIX = ".safetensors"
LEFTOVER = 3600.0  # seconds after which an unfinished file is litter


class Store(Protocol):
    """Named blobs. Every method raises `StoreError` if the store cannot be reached or written."""

    def read(self, key: str) -> bytes | None:
        """The blob, if there is one."""

    def first(self, keys: Sequence[str]) -> str | None:
        """The first of `keys` that has a blob."""

    def write(self, key: str, data: bytes) -> None:
        """Put a blob in place of an earlier one; it counts as used now."""

    def delete(self, key: str) -> None:
        """Forget a blob, if there is one."""

    def sweep(self) -> int:
        """Forget what is too old, and the oldest of what is too much; the bytes that remain."""


def open_store(url: str, ttl: float, limit: int) -> Store | None:
    """The store that `url` names: `none`, a folder, `redis://…`, or any URL that fsspec knows.

    Args:
        ttl: seconds after which a blob that was not written again is forgotten.
        limit: bytes that all blobs may have together.

    Raises:
        ConfigError: the URL is of no known kind.
        StoreError: it cannot be reached.
    """
    if url == "none":
        return None
    if url.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore(url, ttl, limit)
    return FileStore(url, ttl, limit)


class FileStore:
    """Files in a folder, on this machine or wherever fsspec reaches.

    On this machine a file is renamed into place when it is complete and on disk. Object stores put a blob
    at once.
    """

    def __init__(self, url: str, ttl: float, limit: int) -> None:
        self._ttl, self._limit = ttl, limit
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"store {url!r} cannot be opened: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        with self._errors():
            self._fs.makedirs(self._root, exist_ok=True)
            if self._local:
                os.chmod(self._root, 0o700)  # dialogues are nobody else's

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileError as error:
            raise StoreError(f"the store failed: {error}") from error
        except Exception as error:  # every file system of fsspec has its own
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StoreError(f"the store {self._root} failed: {' '.join(str(reason).split())}") from error

    def _path(self, key: str) -> str:
        return f"{self._root}/{key[:2]}/{key}{SUFFIX}"

    def read(self, key: str) -> bytes | None:
        with self._errors(), suppress(FileNotFoundError):
            return bytes(self._fs.cat_file(self._path(key)))
        return None

    def first(self, keys: Sequence[str]) -> str | None:
        with self._errors():
            return next((key for key in keys if self._fs.exists(self._path(key))), None)

    def write(self, key: str, data: bytes) -> None:
        with self._errors():
            if self._local:
                write_atomic(self._path(key), data)
            else:
                self._fs.makedirs(f"{self._root}/{key[:2]}", exist_ok=True)
                self._fs.pipe_file(self._path(key), data)

    def delete(self, key: str) -> None:
        with self._errors(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def sweep(self) -> int:
        now, held, total = time.time(), [], 0
        with self._errors():
            self._fs.invalidate_cache()
            for path, info in self._fs.find(self._root, detail=True).items():
                age, size = now - _written(info), int(info["size"] or 0)
                if age > (self._ttl if path.endswith(SUFFIX) else LEFTOVER):
                    self._remove(path)
                elif path.endswith(SUFFIX):
                    held.append((age, size, path))
                    total += size
            for _, size, path in sorted(held, reverse=True):
                if total <= self._limit:
                    break
                self._remove(path)
                total -= size
        return total

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)


def _written(info: dict[str, Any]) -> float:
    """When a file was written, in seconds: each file system says so in its own way."""
    for name in ("mtime", "LastModified", "last_modified", "modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
    return time.time()


class RedisStore:
    """Keys in Redis, which forgets them by itself after their time."""

    PREFIX = "sonic-kv:"

    def __init__(self, url: str, ttl: float, limit: int) -> None:
        import redis

        self._ttl, self._limit = max(int(ttl * 1000), 1), limit
        try:
            self._redis = redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=2.0)
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
            raise StoreError(f"the store in Redis failed: {' '.join(str(error).split())}") from error

    def read(self, key: str) -> bytes | None:
        with self._errors():
            found: Any = self._redis.get(self.PREFIX + key)
            return None if found is None else bytes(found)

    def first(self, keys: Sequence[str]) -> str | None:
        with self._errors():
            asked = self._redis.pipeline(transaction=False)
            for key in keys:
                asked.exists(self.PREFIX + key)
            found = asked.execute() if keys else []
            return next((key for key, there in zip(keys, found, strict=True) if there), None)

    def write(self, key: str, data: bytes) -> None:
        with self._errors():
            self._redis.set(self.PREFIX + key, data, px=self._ttl)

    def delete(self, key: str) -> None:
        with self._errors():
            self._redis.delete(self.PREFIX + key)

    def sweep(self) -> int:
        with self._errors():
            names = list(self._redis.scan_iter(match=self.PREFIX + "*", count=1000))
            asked = self._redis.pipeline(transaction=False)
            for name in names:
                asked.pttl(name)
                asked.strlen(name)
            found = asked.execute() if names else []
            left, sizes = found[::2], found[1::2]  # what was written first has the least time left
            total = sum(sizes)
            for _, size, name in sorted(zip(left, sizes, names, strict=True)):
                if total <= self._limit:
                    break
                self._redis.delete(name)
                total -= size
        return int(total)
