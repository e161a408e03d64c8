"""Sources of dialogues: JSON lines, plain or gzipped, `{"messages": [{"role", "content"}], ...}` a line; and
datasets with such a column."""

import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sonic_kv.errors import DataError, MessageError
from sonic_kv.model.chat_format import check_messages

log = logging.getLogger(__name__)


def _checked(dialogue: Any) -> dict[str, Any]:
    """`dialogue`, if it is one. Raises `ValueError` or `MessageError` that say what is wrong with it."""
    if not isinstance(dialogue, dict) or not isinstance(dialogue.get("messages"), list):
        raise ValueError("needs an object with a list 'messages'")
    check_messages(dialogue["messages"])
    return dialogue


def read_dialogues(path: str | Path, *, skip_malformed: bool = False) -> Iterator[dict[str, Any]]:
    """The dialogues of a `.jsonl` or `.jsonl.gz` file, one line in memory at a time; blank lines are none.

    Args:
        skip_malformed: leave malformed lines out; a warning counts them at the end.

    Raises:
        DataError: the file cannot be read, or a line is malformed (the message names file and line).
    """
    path = Path(path)
    skipped = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    dialogue = _checked(json.loads(line.decode("utf-8")))
                except (ValueError, MessageError) as error:
                    if not skip_malformed:
                        raise DataError(f"{path}, line {number}: {error}") from error
                    skipped += 1
                    continue
                yield dialogue
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if skipped:
        log.warning("%s: skipped %d malformed lines", path, skipped)


def read_source(source: str, *, skip_malformed: bool = False) -> Iterator[dict[str, Any]]:
    """The dialogues of a `.jsonl` or `.jsonl.gz` file, of a folder that holds a dataset, or of a hub id.

    Args:
        source: a path, or `owner/name` or `owner/name:split` (default split: train).

    Raises:
        DataError: as `read_dialogues`; also if the `datasets` library is not installed or cannot load it.
    """
    path = Path(source)
    if path.is_dir() or not (path.exists() or path.suffix in (".jsonl", ".gz") or source.count("/") != 1):
        return _read_dataset(source, skip_malformed)
    return read_dialogues(path, skip_malformed=skip_malformed)


def _read_dataset(source: str, skip_malformed: bool) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source} is a dataset: pip install 'sonic-kv[train]' to read it") from error
    name, _, split = source.partition(":") if not Path(source).exists() else (source, "", "")
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, split=split or None)
    except Exception as error:  # the library raises its own and everybody else's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source}: cannot be loaded as a dataset: {reason}") from error
    if isinstance(found, dict):  # splits
        if "train" not in found:
            raise DataError(f"{source} has no split 'train': name one, {source}:{next(iter(found))}")
        found = found["train"]
    if "messages" not in found.column_names:
        raise DataError(f"{source} has no column 'messages' (but {', '.join(found.column_names)})")
    skipped = 0
    for number, row in enumerate(found.select_columns(["messages"])):
        try:
            yield _checked(row)
        except (ValueError, MessageError) as error:
            if not skip_malformed:
                raise DataError(f"{source}, row {number}: {error}") from error
            skipped += 1
    if skipped:
        log.warning("%s: skipped %d malformed rows", source, skipped)
