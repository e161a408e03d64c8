"""Sources of dialogues: JSON lines, JSON arrays, Parquet, saved datasets and datasets of the hub.

Each row may have any of the forms of `sonic_kv.data.forms`. A malformed row is named by file and line, or left out.
"""

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sonic_kv.data.forms import FORMS, as_dialogue, is_dialogue
from sonic_kv.errors import DataError, MessageError
from sonic_kv.files import hub_answers
from sonic_kv.model.messages import check_messages
from sonic_kv.text import reason

log = logging.getLogger(__name__)
FILES = (".jsonl", ".json", ".gz", ".parquet")
_BOM = b"\xef\xbb\xbf"


def read_dialogues(path: str | Path, *, skip_malformed: bool = False) -> Iterator[dict[str, Any]]:
    """The dialogues of a file of JSON lines, of a JSON array (both plain or gzipped) or of Parquet.

    Of JSON lines and Parquet only a part is in memory at a time. Blank lines are none.

    Args:
        skip_malformed: leave malformed rows out; a warning counts them at the end, and names the first.

    Raises:
        DataError: the file cannot be read, or a row is malformed (the message names file and line).
    """
    yield from _checked(str(path), read_rows(Path(path)), skip_malformed)


def _checked(source: str, rows: Iterable[tuple[str, Any]], skip_malformed: bool) -> Iterator[dict[str, Any]]:
    """The dialogues among rows, each with the place where it stands."""
    skipped, first = 0, ""
    for place, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            dialogue = as_dialogue(row)
            dialogue["messages"] = check_messages(dialogue["messages"])
        except (ValueError, KeyError, TypeError, AttributeError, MessageError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            if not skip_malformed:
                raise DataError(f"{source}, {place}: {reason}") from error
            first = first or f"{place}: {reason}"
            skipped += 1
            continue
        yield dialogue
    if skipped:
        log.warning("%s: skipped %d malformed rows; the first: %s", source, skipped, first)


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place; a malformed line is a `ValueError`.

    Raises:
        DataError: the file cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        with _open(path) as file:
            start = next((line for line in file if line.strip(_BOM).strip()), b"").removeprefix(_BOM).strip()
        document = _document(path) if _opens(start) else None
        if document is not None:
            yield from document
            return
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if text.strip():
                    yield from _line(f"line {number}", text)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _line(place: str, text: bytes) -> Iterator[tuple[str, Any]]:
    try:
        row = _parsed(text)
    except ValueError as error:
        yield place, error
        return
    if isinstance(row, list) and row and not is_dialogue(row):  # a whole array in one line
        yield from _items(row, f"{place}, ")
    else:
        yield place, row


def _parsed(text: bytes) -> Any:
    """What JSON says; `ValueError` if it is none, or nested too deeply to be read."""
    try:
        return json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _opens(line: bytes) -> bool:
    """Whether a first line begins a JSON document that is laid out over many."""
    try:
        _parsed(line)
    except ValueError:
        return line.startswith((b"[", b"{"))
    return False


def _document(path: Path) -> Iterator[tuple[str, Any]] | None:
    """The rows of a file that is one JSON document; None: it is not."""
    with _open(path) as file:
        try:
            found = _parsed(file.read().removeprefix(_BOM))
        except ValueError:
            return None
    return _items(found if isinstance(found, list) and not is_dialogue(found) else [found])


def _items(rows: list[Any], place: str = "") -> Iterator[tuple[str, Any]]:
    yield from ((f"{place}item {number}", row) for number, row in enumerate(rows, start=1))


def read_source(source: str, *, skip_malformed: bool = False) -> Iterator[dict[str, Any]]:
    """The dialogues of a file (see `read_dialogues`), of a folder that holds a dataset, or of a hub id.

    Args:
        source: a path, or `owner/name` or `owner/name:split` (default split: train).

    Raises:
        DataError: as `read_dialogues`; also if the `datasets` library is not installed or cannot load it.
    """
    path = Path(source)
    if path.is_dir() or not (path.exists() or path.suffix in FILES or source.count("/") != 1):
        yield from _checked(source, _dataset(source), skip_malformed)
    else:
        yield from read_dialogues(path, skip_malformed=skip_malformed)


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source} is a dataset: pip install 'sonic-kv[train]' to read it") from error
    return datasets


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: cannot be read: no such file")
    return _rows(str(path), "parquet", data_files=str(path), split="train", streaming=True)


def _dataset(source: str) -> Iterator[tuple[str, Any]]:
    name, _, split = source.partition(":") if not Path(source).exists() else (source, "", "")
    return _rows(source, name, split=split or None)


def _rows(source: str, name: str, **options: Any) -> Iterator[tuple[str, Any]]:
    """The rows of a dataset, those columns that a form has."""
    datasets = _library(source)
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            found = datasets.load_from_disk(name)
        elif Path(name).exists() or "/" not in name:
            found = datasets.load_dataset(name, **options)
        else:
            with _offline_if_nobody_answers(datasets):
                found = datasets.load_dataset(name, **options)
        if isinstance(found, dict) and "train" in found:
            found = found["train"]
        elif isinstance(found, dict):  # splits
            raise DataError(f"{source} has no split 'train': name one, {source}:{next(iter(found))}")
        columns = found.column_names or [*next(iter(found), {})]
        if not any(form in columns for form in FORMS):
            raise DataError(f"{source} has no column 'messages' (but {', '.join(columns)})")
        for number, row in enumerate(found):
            yield f"row {number}", row
    except DataError:
        raise
    except ConnectionError as error:
        raise DataError(
            f"{source}: no such file or folder, not in the local cache, and the hub cannot be reached"
        ) from error
    except Exception as error:  # the library raises its own and everybody else's
        raise DataError(f"{source}: cannot be loaded as a dataset: {reason(error)}") from error


@contextmanager
def _offline_if_nobody_answers(datasets: Any) -> Iterator[None]:
    """Let the library look in its cache alone if the hub cannot be reached: it would try for half a minute."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = not hub_answers()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
