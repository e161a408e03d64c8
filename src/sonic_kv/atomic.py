"""Files that are complete or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import BinaryIO

from sonic_kv.errors import FileError


@contextmanager
def replacing(path: str | Path, *, make_folder: bool = False) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: a reader, or a crash, sees the old content or the new one.

    A device or a pipe is written to as it is.

    Raises:
        FileError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                yield file
            return
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise FileError(f"cannot write {path}: {error.strerror}") from error
        raise


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a file by `replacing`, in a folder that is made if it is not there."""
    with replacing(path, make_folder=True) as file:
        file.write(data)
