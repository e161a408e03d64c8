"""Files that are complete or not there; sealed safetensors files: a JSON header and a checksum over everything."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sonic_kv.errors import ConfigError, FileError
from sonic_kv.options import expect
from sonic_kv.text import reason

HEADER = "sonic_kv"
VERSION = 1
TIMEOUT = 3.0  # seconds for the hub to answer at all


def as_path(path: str | Path) -> Path:
    """A path as it was given.

    Raises:
        ConfigError: it is none.
    """
    found = Path(path) if isinstance(path, str) else expect(path, Path, "a path", "a text will do")
    try:
        os.fsencode(found)
    except UnicodeEncodeError as error:
        raise ConfigError(f"the path {str(found)!r} holds half a character (a lone surrogate)") from error
    return found


@contextmanager
def replacing(path: str | Path, *, make_folder: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: a reader, or a crash, sees the old content or the new one.

    A device or a pipe is written to as it is.

    Args:
        private: nobody but its owner can read the file, or a folder that is made for it.

    Raises:
        FileError: it cannot be written.
    """
    path = as_path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                yield file
            return
        if make_folder:
            _make_folder(path.parent, 0o700 if private else 0o777)
        mode = 0o600 if private else 0o666
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise FileError(f"cannot write {path}: {reason(error)}") from error
        raise


def _make_folder(folder: Path, mode: int) -> None:
    """Make a folder and all above it that are missing; the mode of one that is there stays."""
    if not folder.is_dir():
        _make_folder(folder.parent, mode)
        with suppress(FileExistsError):
            folder.mkdir(mode)


def write_atomic(path: str | Path, data: bytes, *, private: bool = False) -> None:
    """Write a file by `replacing`, in a folder that is made if it is not there."""
    with replacing(path, make_folder=True, private=private) as file:
        file.write(data)


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add JSON lines to a file; they are on the disk when this returns.

    Raises:
        FileError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}") from error


def drop_torn_line(path: Path) -> None:
    """A process that was killed while it wrote leaves half a line: forget it."""
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            write_atomic(path, data[: data.rfind(b"\n") + 1])


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def seal(kind: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """A sealed file's content: `tensors` with a JSON-able `header`. `kind` says what it is ("session", …)."""
    return _seal(kind, header, tensors)[1]


def _seal(kind: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[str, bytes]:
    header = json.loads(json.dumps({**header, "kind": kind, "version": VERSION}))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = _digest(header, tensors)
    return digest, save(tensors, metadata={HEADER: json.dumps({**header, "sha256": digest})})


def write_sealed(path: str | Path, kind: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a sealed file, atomically."""
    write_atomic(path, seal(kind, header, tensors))


def write_addressed(
    folder: str | Path, kind: str, header: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[Path, str]:
    """Write a sealed file that is named by its own checksum, for its owner alone; one that is there is not touched.

    Returns:
        its path, and the checksum
    """
    digest, data = _seal(kind, header, tensors)
    path = Path(folder) / f"{digest}.safetensors"
    if not path.exists():
        write_atomic(path, data, private=True)
    return path, digest


def unseal(data: bytes, kind: str, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a sealed file's content, verified; `name` is what errors call it.

    Raises:
        FileError: as `read_sealed`.
    """
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise FileError(f"{name} is damaged or not a safetensors file: {error}") from error
    return _verified(unseal_header(data, name), tensors, kind, name)


def unseal_header(start: bytes, name: str) -> dict[str, Any]:
    """The JSON header in the first bytes of a sealed file, its checksum not verified; `header_bytes` says how many.

    Raises:
        FileError: as `read_header`.
    """
    try:
        metadata = json.loads(start[8 : header_bytes(start)]).get("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise FileError(f"{name} is damaged or not a safetensors file: {error}") from error
    return _header(metadata, name)


def header_bytes(start: bytes) -> int:
    """Where the header of a safetensors file ends, from its first eight bytes."""
    return 8 + int.from_bytes(start[:8], "little")


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a sealed file, its checksum not verified.

    Raises:
        FileError: missing, truncated, not written by sonic-kv, or of a newer version.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist or is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged or not a safetensors file: {error}") from error
    return _header(metadata, str(path))


def _header(metadata: dict[str, str], name: str) -> dict[str, Any]:
    try:
        header = json.loads(metadata[HEADER])
        version = int(header["version"])
    except (KeyError, ValueError, TypeError) as error:
        raise FileError(f"{name} was not written by sonic-kv: it has no valid {HEADER!r} header") from error
    if version > VERSION:
        raise FileError(f"{name} has format version {version}, this sonic-kv reads up to {VERSION}: upgrade")
    return dict(header)


def read_sealed(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a sealed file, verified.

    Raises:
        FileError: as `read_header`, or of another kind, or the checksum does not fit.
    """
    header = read_header(path)
    _check_kind(header, kind, str(path))
    try:
        with safe_open(Path(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged: {error}") from error
    return _verified(header, tensors, kind, str(path))


def _check_kind(header: dict[str, Any], kind: str, name: str) -> None:
    if header.get("kind") != kind:
        raise FileError(f"{name} is a {header.get('kind')} file, not a {kind} file")


def _verified(
    header: dict[str, Any], tensors: dict[str, Tensor], kind: str, name: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _check_kind(header, kind, name)
    if header.pop("sha256", None) != _digest(header, tensors):
        raise FileError(f"{name} is damaged or was changed: its checksum does not fit")
    return header, tensors


def from_hub(name: str, file: str) -> Path:
    """A file of a hub repository, downloaded if it is not in the local cache.

    Raises:
        FileError: it cannot be had, or `name` cannot be a hub id.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileError(f"{name} does not exist")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    answers = hub_answers()
    try:
        return Path(hf_hub_download(name, file, local_files_only=not answers))
    except Exception as error:  # network, authentication, no such repository, a name that is none …
        why = f"to be had from the hub: {reason(error)}"
        if not answers and isinstance(error, LocalEntryNotFoundError):
            why = "in the local cache, and the hub cannot be reached"
        raise FileError(f"{name} is neither a path nor {why}") from error


def hub_answers() -> bool:
    """Whether the hub can be reached: its own client would try for half a minute before it gives up."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), TIMEOUT).close()
    except OSError:
        return False
    return True
