"""Dialogues with replies of the model's own: each is what a session would have said, whatever runs beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import TEMPLATE, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.cli.main import main
from sonic_kv.compress.options import Budget
from sonic_kv.model.model import SonicModel
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.own_replies import own_replies
from sonic_kv.session.session import ChatSession
from sonic_kv.text import Progress

GREEDY = SamplingConfig(max_new_tokens=12, temperature=0)


def told(*texts: str) -> list[dict[str, Any]]:
    """Messages from `role: text`."""
    return [dict(zip(("role", "content"), text.split(": ", 1), strict=True)) for text in texts]


DIALOGUES = [
    told("user: hi\u2028there\x85", "assistant: given", "user: and then?", "assistant: given", "user: go on"),
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


def test_what_a_template_refuses_ends_its_dialogue_alone(caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_base()
    refuses = "{% for m in messages if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endfor %}"
    model = SonicModel(base, tiny_tokenizer(refuses + TEMPLATE))
    late = told("user: hi", "assistant: given", "system: be brief", "user: bye", "assistant: given")
    found = list(own_replies(model, [DIALOGUES[1], late, late[:2]], GREEDY, max_tokens=500))
    assert [len(messages) for messages in found] == [0, 2, 2]
    assert "dialogue 1 ends before message 1" in caplog.text
    assert "dialogue 2 ends before message 3" in caplog.text
    assert "dialogue 3" not in caplog.text


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
    assert [len(json.loads(line)["messages"]) for line in whole.rstrip("\n").split("\n")] == [6, 3, 5]
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
    given = source.read_text()
    source.write_text(given.replace("what is the code", "what was the code"))
    assert main([*command, str(again)]) == 2
    source.write_text(given)
    assert main([*command, str(again)]) == 0
    assert again.read_text() == whole
    assert not part.exists()


def test_the_command_needs_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "answer", "given.jsonl", "--model", "tiny"]
    for out in (tmp_path, tmp_path / "no" / "own.jsonl"):
        assert main([*command, "--out", str(out)]) == 1
        assert f"cannot write {out}: " in capsys.readouterr().err
    assert main(command) == 2
    assert "data answer needs --out FILE" in capsys.readouterr().err
