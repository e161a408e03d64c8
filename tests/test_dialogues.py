"""Dialogue files: in the forms that people have, streamed; what is malformed is named by file and line."""

import gzip
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from sonic_kv.cli.main import main
from sonic_kv.data.dialogues import read_dialogues, read_source
from sonic_kv.data.forms import as_dialogue
from sonic_kv.errors import DataError
from sonic_kv.eval.suites import load
from sonic_kv.files import TIMEOUT

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
    "unknown role": '{"messages": [{"role": "robot", "content": "Hi"}]}',
    "role is no text": '{"messages": [{"role": 1, "content": "Hi"}]}',
    "no content": '{"messages": [{"role": "user"}]}',
    "content is no text": '{"messages": [{"role": "user", "content": 1}]}',
    "a picture": '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}',
    "half a character": '{"messages": [{"role": "user", "content": "Ada \\ud83d lives in Oslo"}]}',
    "half a character in ShareGPT": '{"conversations": [{"from": "human", "value": "\\udc00"}]}',
    "history is no list": '{"history": 5}',
    "no speakers": '{"question": "q", "answer": "a", "followup": "then?"}',
}


def write(path: Path, *lines: str) -> Path:
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def said(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["nobody/nothing", "nobody/nothing:test"])
def test_a_dataset_that_the_hub_would_have_fails_at_once_without_it(source: str) -> None:
    import datasets

    offline, start = datasets.config.HF_HUB_OFFLINE, time.perf_counter()
    with pytest.raises(DataError, match=f"^{source}: no such file .* the hub cannot be reached$"):
        next(read_source(source))
    assert time.perf_counter() - start < TIMEOUT + 5
    assert offline == datasets.config.HF_HUB_OFFLINE


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_reads_what_was_written(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, json.dumps(GOOD), "", json.dumps(GOOD, ensure_ascii=False))
    assert list(read_dialogues(path)) == [GOOD, GOOD]


@pytest.mark.parametrize("name", ["d.json", "d.json.gz", "d.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_as_its_dialogues(tmp_path: Path, name: str, indent: int | None) -> None:
    path = write(tmp_path / name, json.dumps([GOOD, GOOD], indent=indent))
    assert list(read_dialogues(path)) == [GOOD, GOOD]
    assert list(read_source(str(path))) == [GOOD, GOOD]
    lines = write(tmp_path / name, *f"[{json.dumps(GOOD)},\n {json.dumps(GOOD)}]".splitlines())
    assert list(read_dialogues(lines)) == [GOOD, GOOD]
    alone = write(tmp_path / name, json.dumps(GOOD["messages"], indent=indent))
    assert list(read_dialogues(alone)) == [{"messages": GOOD["messages"]}]


def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path: Path) -> None:
    for text in (json.dumps(GOOD), json.dumps([GOOD], indent=2)):
        path = tmp_path / "d.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert list(read_dialogues(path)) == [GOOD]


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
    with pytest.raises(DataError, match=r"d\.jsonl, line 2(, item 1)?: ") as error:
        list(read_dialogues(path))
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert list(read_dialogues(path, skip_malformed=True)) == [GOOD, GOOD]
    assert "skipped 1 malformed rows; the first: line 2" in caplog.text
    assert str(error.value).rpartition("line 2")[2] in caplog.text  # and why


def test_a_malformed_first_line_is_no_document(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", "{", json.dumps(GOOD))
    with pytest.raises(DataError, match=r"d\.jsonl, line 1"):
        list(read_dialogues(path))
    assert list(read_dialogues(path, skip_malformed=True)) == [GOOD]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000])
def test_a_line_that_is_nested_too_deeply_is_malformed(tmp_path: Path, line: str) -> None:
    for lines in ((line, json.dumps(GOOD)), (json.dumps(GOOD), line)):
        path = write(tmp_path / "a.jsonl", *lines)
        assert list(read_dialogues(path, skip_malformed=True)) == [GOOD]
        with pytest.raises(DataError, match="nested too deeply"):
            list(read_dialogues(path))


def test_bytes_that_are_no_text_are_malformed(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="line 1"):
        list(read_dialogues(path))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.json", "none.parquet"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            list(read_dialogues(tmp_path / name))
    whole = write(tmp_path / "d.jsonl.gz", *[json.dumps(GOOD)] * 100).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be read"):
        list(read_dialogues(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    with pytest.raises(DataError, match=r"plain\.jsonl\.gz: cannot be read"):
        list(read_dialogues(tmp_path / "plain.jsonl.gz"))


def test_parquet_is_read_row_by_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "d.parquet"
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    bad = [{"from": "robot", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    datasets.Dataset.from_list([{"conversations": one} for one in (shared, bad, shared)]).to_parquet(
        str(path)
    )
    with pytest.raises(DataError, match=r"d\.parquet, row 1: message 0 has the unknown role 'robot'"):
        list(read_source(str(path)))
    found = [said(one["messages"]) for one in read_source(str(path), skip_malformed=True)]
    assert found == [[("user", "Hi"), ("assistant", "Hello")]] * 2
    datasets.Dataset.from_list([{"text": "a"}]).to_parquet(str(path))
    with pytest.raises(DataError, match="no column 'messages'"):
        list(read_dialogues(path))


# --- forms ---------------------------------------------------------------------------------------

PLAIN = [("system", "Be brief."), ("user", "Hi there"), ("assistant", "Hello"), ("user", "And?")]
TEXTS = [{"role": role, "content": text} for role, text in PLAIN]
SHARED = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in PLAIN[1:]]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TEXTS},
        TEXTS,
        {"messages": [{**TEXTS[0], "role": "developer"}, *TEXTS[1:]]},
        {
            "messages": [
                TEXTS[0],
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}],
                },
                *TEXTS[2:],
            ]
        },
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHARED]},
        {"conversations": SHARED, "system": "Be brief."},
        {"conversation": TEXTS},
        {"messages": {"role": [role for role, _ in PLAIN], "content": [text for _, text in PLAIN]}},
    ],
    ids=["messages", "list", "developer", "parts", "sharegpt", "system beside", "lmsys", "columns"],
)
def test_the_forms_that_people_have_are_one_dialogue(row: Any) -> None:
    assert said(as_dialogue(row)["messages"]) == PLAIN


def test_calls_of_tools_and_their_results_stay() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = as_dialogue(
        {
            "messages": [
                {"role": "user", "content": "What time is it?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "noon"},
                {"role": "assistant", "content": "It is noon.", "tool_calls": None},
            ]
        }
    )["messages"]
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert messages[2] == {"role": "tool", "content": "noon", "tool_call_id": "1"}
    assert messages[3] == {"role": "assistant", "content": "It is noon."}
    shared = [{"from": "human", "value": "?"}, {"from": "function_call", "value": "{}"}]
    shared += [{"from": "observation", "value": "noon"}, {"from": "gpt", "value": "Noon."}]
    assert [role for role, _ in said(as_dialogue({"conversations": shared})["messages"])] == [
        *("user", "assistant", "tool", "assistant")
    ]


MATH_CHAT = {
    "question": "Ann has 3 pears and buys 4. How many has she?",
    "answer": "She has 3+4=<<3+4=7>>7 pears.\n#### 7",
    "followup": "A: She eats 2. How many are left?\n\nB: 7-2 = 5 are left. The answer is \\ANSWER{5}.\n\n"
    "**A:** Half of 7, as a fraction?\n**B:** It is \\(\\boxed{\\frac{7}{2}}\\).",
}
GECOR = {
    "dial": [
        {
            "turn": 0,
            "usr": {
                "transcript": "A cheap hotel, please.",
                "slu": [],
                "transcript_complete": "A cheap hotel, please.",
                "transcript_with_ellipsis": "",
                "transcript_with_coreference": "",
            },
            "sys": {"sent": "The Swan is cheap.", "DA": []},
        },
        {
            "turn": 1,
            "usr": {
                "transcript": "Where is it?",
                "slu": [],
                "transcript_complete": "Where is the Swan?",
                "transcript_with_ellipsis": "",
                "transcript_with_coreference": "Where is it?",
            },
            "sys": {"sent": "In Mill Road.", "DA": []},
        },
    ],
    "dialogue_id": 4,
    "goal": {},
}


def test_math_chat_as_its_authors_publish_it(tmp_path: Path) -> None:
    path = write(tmp_path / "follow_up.jsonl", json.dumps(MATH_CHAT), json.dumps(MATH_CHAT))
    first, second = read_dialogues(path)
    assert first == second
    assert [role for role, _ in said(first["messages"])] == ["user", "assistant"] * 3
    assert said(first["messages"])[2] == ("user", "She eats 2. How many are left?")
    assert first["meta"]["finals"] == ["7", "5", "\\frac{7}{2}"]
    suite = load("gsm8k-var", str(path), 0, 0, 0)
    assert [question.answer for question in suite.cases[0].questions] == first["meta"]["finals"]
    assert len(suite.cases) == 2


def test_gecor_as_its_authors_publish_it(tmp_path: Path) -> None:
    path = write(tmp_path / "CamRest676_annotated.json", json.dumps([GECOR], indent="\t"))
    (found,) = read_dialogues(path)
    assert found["id"] == "dialogue-4"
    assert said(found["messages"])[2:] == [("user", "Where is it?"), ("assistant", "In Mill Road.")]
    (case,) = load("coreference", str(path), 0, 0, 0).cases
    assert case.group == "coreference"
    assert case.questions[0].answer == "Where is the Swan?"


# --- the command ---------------------------------------------------------------------------------


def test_convert_writes_what_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        write(tmp_path / "a.jsonl", json.dumps(MATH_CHAT)),
        write(tmp_path / "b.json", json.dumps([GECOR], indent=1)),
        write(tmp_path / "c.jsonl", json.dumps({"conversations": SHARED})),
    ]
    out = tmp_path / "all.jsonl.gz"
    assert main(["data", "convert", *map(str, files), "--out", str(out)]) == 0
    expected = [one for file in files for one in read_dialogues(file)]
    assert list(read_dialogues(out)) == expected
    assert len(expected) == 3
    assert main(["data", "convert", str(files[2])]) == 0
    assert json.loads(capsys.readouterr().out) == expected[2]


def test_convert_stops_at_a_malformed_row_or_leaves_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(GOOD), MALFORMED["half a character"])
    out = tmp_path / "out.jsonl"
    assert main(["data", "convert", str(path), "--out", str(out)]) == 1
    assert "a.jsonl, line 2: message 0 holds half a character" in capsys.readouterr().err
    assert not out.exists()
    assert main(["data", "convert", str(path), "--out", str(out), "--skip-malformed"]) == 0
    assert list(read_dialogues(out)) == [GOOD]
