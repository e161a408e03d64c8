"""Dialogue files: streamed, plain or gzipped; what is malformed is named by file and line."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from sonic_kv.data.dialogues import read_dialogues
from sonic_kv.errors import DataError

GOOD = {
    "id": "a",
    "messages": [{"role": "user", "content": "Hi ☕"}, {"role": "assistant", "content": "Hello"}],
}
MALFORMED = {
    "no JSON": "{",
    "no object": "[1]",
    "no messages": "{}",
    "messages are no list": '{"messages": "Hi"}',
    "empty dialogue": '{"messages": []}',
    "unknown role": '{"messages": [{"role": "bot", "content": "Hi"}]}',
    "no content": '{"messages": [{"role": "user"}]}',
    "content is no text": '{"messages": [{"role": "user", "content": 1}]}',
}


def write(path: Path, *lines: str) -> Path:
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_reads_what_was_written(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, json.dumps(GOOD), "", json.dumps(GOOD, ensure_ascii=False))
    assert list(read_dialogues(path)) == [GOOD, GOOD]


def test_streams_before_a_later_line_fails(tmp_path: Path) -> None:
    dialogues = read_dialogues(write(tmp_path / "d.jsonl", json.dumps(GOOD), "{"))
    assert next(dialogues) == GOOD
    with pytest.raises(DataError, match=r"d\.jsonl, line 2"):
        next(dialogues)


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_line_is_named_or_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    path = write(tmp_path / "d.jsonl", json.dumps(GOOD), line, json.dumps(GOOD))
    with pytest.raises(DataError, match=r"d\.jsonl, line 2: ") as error:
        list(read_dialogues(path))
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert list(read_dialogues(path, skip_malformed=True)) == [GOOD, GOOD]
    assert "skipped 1 malformed" in caplog.text


def test_bytes_that_are_no_text_are_malformed(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="line 1"):
        list(read_dialogues(path))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        list(read_dialogues(tmp_path / "none.jsonl"))
    whole = write(tmp_path / "d.jsonl.gz", *[json.dumps(GOOD)] * 100).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be read"):
        list(read_dialogues(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    with pytest.raises(DataError, match=r"plain\.jsonl\.gz: cannot be read"):
        list(read_dialogues(tmp_path / "plain.jsonl.gz"))
