"""Dialogue files: JSON lines, plain or gzipped, `{"messages": [{"role", "content"}], ...}` a line."""

import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sonic_kv.errors import DataError, MessageError
from sonic_kv.segments import check_messages

log = logging.getLogger(__name__)


def _parse(line: bytes) -> dict[str, Any]:
    """A dialogue from its line. Raises `ValueError` or `MessageError` that say what is wrong with it."""
    dialogue = json.loads(line.decode("utf-8"))
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
                    dialogue = _parse(line)
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
