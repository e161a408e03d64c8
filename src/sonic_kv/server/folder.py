"""A store in a folder, on this machine or wherever fsspec reaches.

It keeps to a subfolder of its own, which it marks: `FOLDER/owner/dialogues/key.safetensors`, `…/caches/…`.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sonic_kv.errors import ConfigError, FileError, StoreError
from sonic_kv.files import write_atomic
from sonic_kv.server.store import Entry, Kind, Limits, Name, Store, log

try:
    import fcntl
except ModuleNotFoundError:  # Windows: two servers on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

FOLDER = "sonic-kv-store"
MARK = "OWNED-BY-SONIC-KV.txt"
TEXT = b"sonic-kv serve keeps dialogues in this folder, and deletes old ones. It touches nothing outside of it.\n"
LOCK = ".lock"
LEFTOVER = 3600.0  # seconds after which an unfinished file is litter
FOLDERS: dict[Kind, str] = {"dialogue": "dialogues", "cache": "caches"}
KINDS: dict[str, Kind] = {folder: kind for kind, folder in FOLDERS.items()}
OURS = re.compile(r"([0-9a-f]{32})/(dialogues|caches)/(\.?)([0-9a-f]{64})\.safetensors(\.[0-9-]+\.tmp)?")
BEFORE = re.compile(r"[0-9a-f]{2}")  # folders of a store as it was before it had a subfolder


class FolderStore(Store):
    """Files in a folder.

    On this machine a file is renamed into place when it is complete and on disk, and nobody else can read it.
    Object stores put a blob at once.

    Args:
        url: of the folder in which the store has its own.
        beside_others: that folder may hold other files too.
    """

    def __init__(self, url: str, limits: Limits, beside_others: bool = False) -> None:
        super().__init__(limits)
        try:
            self._fs, place = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"store {url!r} cannot be opened: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._root = f"{place.rstrip('/')}/{FOLDER}"
        self._lock: int | None = None
        with self._errors():
            self._check(place, beside_others)
            self._mark()

    def _check(self, place: str, beside_others: bool) -> None:
        """Raise `ConfigError` if the place is somebody else's."""
        inside = self._names(place)
        if FOLDER in inside:
            foreign = MARK not in (there := self._names(self._root)) and bool(there)
            if foreign:
                raise ConfigError(f"{self._root} is not sonic-kv's: choose another folder for --store")
        elif not beside_others and not all(map(BEFORE.fullmatch, inside)):
            raise ConfigError(
                f"the store's folder {place} holds other files: choose an empty one for --store, "
                "or set store_beside_others in a file (see --config)"
            )

    def _names(self, folder: str) -> list[str]:
        try:
            return [str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def _mark(self) -> None:
        """Make the subfolder, if it is not there."""
        path = f"{self._root}/{MARK}"
        if not self._fs.exists(path):
            self._put(path, TEXT)

    def _put(self, path: str, data: bytes) -> None:
        if self._local:
            write_atomic(path, data, private=True)
        else:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # every file system of fsspec has its own
            cause = error.__cause__ if isinstance(error, FileError) else error
            reason = " ".join(str(getattr(cause, "strerror", None) or cause or type(error).__name__).split())
            log.error("the store in %s failed: %s", self._root, reason)
            raise StoreError(f"the store failed: {reason}") from error  # which goes to clients: no paths

    def _path(self, name: Name) -> str:
        return f"{self._root}/{name.owner}/{FOLDERS[name.kind]}/{name.key}.safetensors"

    def read(self, name: Name) -> bytes | None:
        with self._errors(), suppress(FileNotFoundError):
            return bytes(self._fs.cat_file(self._path(name)))
        return None

    def head(self, name: Name, nbytes: int) -> bytes:
        with self._errors(), suppress(FileNotFoundError):
            return bytes(self._fs.cat_file(self._path(name), 0, nbytes))
        return b""

    def first(self, names: Sequence[Name]) -> Name | None:
        with self._errors():
            return next((name for name in names if self._fs.exists(self._path(name))), None)

    def write(self, name: Name, data: bytes) -> None:
        with self._errors():
            self._mark()  # the folder may have vanished
            self._put(self._path(name), data)

    def delete(self, name: Name) -> None:
        with self._errors(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def entries(self) -> list[Entry]:
        found = []
        with self._errors():
            self._fs.invalidate_cache()
            for path, info in self._fs.find(self._root, detail=True).items():
                ours = OURS.fullmatch(path.removeprefix(self._root).lstrip("/"))
                if ours is None:
                    continue
                written = _written(info)
                if ours[3] or ours[5]:  # never finished
                    if time.time() - written > LEFTOVER:
                        with suppress(FileNotFoundError):
                            self._fs.rm_file(path)
                    continue
                found.append(Entry(Name(ours[1], KINDS[ours[2]], ours[4]), written, int(info["size"] or 0)))
        return found

    def lock(self, shared: bool) -> None:
        if not self._local or fcntl is None:
            return
        with self._errors():
            self._lock = os.open(f"{self._root}/{LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                self.close()
                raise ConfigError(
                    f"another server keeps its dialogues in {self._root}: give this one a folder of its own with "
                    "--store, or --store none"
                ) from error

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


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
