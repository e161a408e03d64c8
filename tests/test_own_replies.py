"""Dialogues with replies of the model's own: each is what a session would have said, whatever runs beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from sonic_kv.cli.main import main
from sonic_kv.compress.options import Budget
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.own_replies import own_replies
from sonic_kv.session.session import ChatSession
from sonic_kv.text import Progress

GREEDY = SamplingConfig(max_new_tokens=12, temperature=0)


def told(*texts: str) -> list[dict[str, Any]]:
    """Messages from `role: text`."""
    return [dict(zip(("role", "content"), text.split(": ", 1), strict=True)) for text in texts]


DIALOGUES = [
    told("user: hi", "assistant: given", "user: and then?", "assistant: given", "user: go on"),
    told("system: be brief", "user: what is the code?", "assistant: given"),
    told("assistant: welcome", "user: hello", "assistant: given", "assistant: more", "user: bye"),
    told("system: be brief"),
    told("user: add", "assistant: given", "tool: 3", "assistant: given"),
]


def asked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["content"] not in ("given", "more")]


def test_replies_are_those_of_sessions_with_full_context() -> None:
    model = tiny_model()
    found = list(own_replies(model, DIALOGUES, GREEDY, max_tokens=500, together=2))
    assert found[3] == found[4] == []
    for given, own in zip(DIALOGUES[:3], found, strict=False):
        said = asked(given)
        assert [message for message in own if message in said] == said
        assert sum(message["role"] == "user" for message in said) == len(own) - len(said)
        system = said.pop(0)["content"] if said[0]["role"] == "system" else None
        chat = ChatSession(model, Budget(compression_ratio=0.0), system=system)
        if said[0]["role"] == "assistant":
            chat.extend([said.pop(0)])
        for message in said:
            chat.send(message["content"], GREEDY)
        assert own == chat.messages


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_goes_on_says_what_the_whole_run_says(seed: int) -> None:
    model, sampling = tiny_model(), SamplingConfig(max_new_tokens=12, temperature=1.0, seed=seed)
    whole = list(own_replies(model, DIALOGUES, sampling, max_tokens=500))
    rest = list(own_replies(model, DIALOGUES[1:], sampling, max_tokens=500, first=1))
    assert whole[1:] == rest
    assert whole != list(own_replies(model, DIALOGUES, GREEDY, max_tokens=500))


def test_a_dialogue_ends_where_it_is_long_enough_or_has_no_room() -> None:
    model = tiny_model(max_position_embeddings=64)
    long = told("user: one", "assistant: x", f"user: {'word ' * 30}", "assistant: x", "user: two")
    [found] = own_replies(model, [long], GREEDY, max_tokens=500)
    assert len(found) == 2
    [found] = own_replies(tiny_model(), [long], GREEDY, max_tokens=1)
    assert len(found) == 2


def test_the_command_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "given.jsonl", tmp_path / "own.jsonl"
    source.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in DIALOGUES))
    command = [
        "data",
        "answer",
        str(source),
        "--model",
        "tiny",
        "--max-new-tokens",
        "8",
        "--seed",
        "3",
        "--out",
    ]
    assert main([*command, str(out)]) == 0
    whole = out.read_text()
    assert [len(json.loads(line)["messages"]) for line in whole.splitlines()] == [6, 3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.jsonl", "own.jsonl"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    again, part = tmp_path / "again.jsonl", tmp_path / "again.jsonl.part"
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "add", stop)
        assert main([*command, str(again)]) == 130
    with part.open("a") as file:
        file.write('{"mess')  # killed while it wrote
    assert main([*command, str(again), "--max-new-tokens", "9"]) == 2
    assert f"{part} is of another run: delete it, or choose another --out" in capsys.readouterr().err
    assert main([*command, str(again)]) == 0
    assert again.read_text() == whole
    assert not part.exists()


def test_the_command_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "answer", "given.jsonl", "--model", "tiny"]) == 2
    assert "data answer needs --out FILE" in capsys.readouterr().err
