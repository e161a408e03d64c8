"""The command line: what it prints where, its exit codes, and that it loads nothing it does not need."""

import dataclasses
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, tiny_model

from sonic_kv import __version__
from sonic_kv.bench import demo
from sonic_kv.bench.options import DemoOptions
from sonic_kv.cli import main as cli
from sonic_kv.cli.flags import Parser, add_flags, build, given_flags, has_flag, read_toml
from sonic_kv.cli.loading import load_for_decoding, load_model
from sonic_kv.cli.repl import Repl, parse_budget
from sonic_kv.compress.options import DEFAULT_BUDGET, Budget, SessionConfig
from sonic_kv.data import synth
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import ConfigError
from sonic_kv.eval.matching import exact_match
from sonic_kv.model.options import ModelOptions
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession
from sonic_kv.training.options import TrainConfig

Ran = tuple[int, str, str]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with its tokenizer and adapter, as `--model` takes it."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.base.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    assert model.adapter is not None
    model.adapter.save(folder, model.fingerprint())
    return folder


@pytest.fixture
def sonic(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process: exit code, standard output, standard error."""

    def run(*arguments: str | Path, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def assert_one_line(error: str) -> None:
    assert error.startswith("sonic-kv: error: ")
    assert error.count("\n") == 1


# --- parsing -----------------------------------------------------------------------------------


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from sonic_kv.cli.main import main\n"
        "try: main(['chat', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
    assert "--compression-ratio" in result.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"sonic-kv {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["chat", "--compresion-ratio", "0.5"], "did you mean --compression-ratio?"),
        (["chat", "--max-entires=5"], "did you mean --max-entries?"),
        (["chat", "--max-new-tokens", "many"], "invalid int value: 'many'"),
        (["chat", "--allocation", "mixed"], "'shared', 'per_head', 'segment'"),
        (["chat", "--compression-ratio", "1.5"], "outside [0, 1)"),
        (["chat", "--max-entries", "0"], "at least 1"),
        (["chat", "--max-entries", "9", "--max-bytes", "9"], "leave one out"),
        (["chat", "--device", "abacus"], "--device abacus cannot be used"),
        (["demo", "--ratios", "0.5", "2"], "outside [0, 1)"),
        (["demo", "--dialogues", "0"], "at least 1"),
        (["talk"], "invalid choice: 'talk'"),
        (["data"], "required: COMMAND"),
        ([], "required: COMMAND"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(sonic: Any, arguments: list[str], expected: str) -> None:
    code, out, error = sonic(*arguments)
    assert (code, out) == (2, "")
    assert_one_line(error)
    assert expected in error


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_help_names_every_option_by_its_flag_or_its_key(
    command: cli.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command.name.split(), "--help"])
    shown = capsys.readouterr().out
    for name, section in command.sections.items():
        for field in dataclasses.fields(section):
            flagged = name not in command.file_only and has_flag(field)
            assert (f"--{field.name.replace('_', '-')}" if flagged else field.name) in shown
            assert field.metadata["help"]


def test_the_command_line_stays_small() -> None:
    def flags(sections: dict[str, type]) -> int:
        return sum(has_flag(field) for cls in sections.values() for field in dataclasses.fields(cls))

    shown = {
        command.name: {n: cls for n, cls in command.sections.items() if n not in command.file_only}
        for command in cli.COMMANDS
    }
    assert max(map(flags, shown.values())) <= 42
    assert flags({name: cls for sections in shown.values() for name, cls in sections.items()}) <= 140


def test_an_option_without_a_flag_says_where_it_is_set(sonic: Any) -> None:
    code, _, error = sonic("train", "--grad-clip", "2")
    assert code == 2
    assert_one_line(error)
    assert "set in a file, as grad_clip in [train]" in error


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_the_printed_file_says_the_same_as_the_flags(
    sonic: Any, command: cli.Command, tmp_path: Path
) -> None:
    if not command.sections:
        return
    name = [*command.name.split(), *(["target"] if command.target else [])]
    given = ["--compression-ratio", "0.25"] if "budget" in command.sections else []
    if "sampling" in command.sections and "sampling" not in command.file_only:
        given += ["--stop", 'a "quoted" text\n', "--seed", "7"]
    code, out, _ = sonic(*name, *given, "--print-config")
    assert code == 0
    _, flags = cli.parse([*name, *given])
    _, file = cli.parse([*name, "--config", str(toml(tmp_path, out))])
    for cls in command.sections.values():
        assert file.options(cls) == flags.options(cls)


def parsed(cls: type, *arguments: str) -> Any:
    parser = Parser()
    add_flags(parser, "it", cls)
    return build(cls, "it", given_flags(parser.parse_args(arguments)))


def test_flags_carry_every_type_of_field() -> None:
    assert parsed(TrainConfig) == TrainConfig()
    found = parsed(
        TrainConfig,
        "--data",
        "a",
        "b",
        "--data",
        "c",
        "--lr",
        "0.1",
        "--no-bf16",
    )
    assert found == TrainConfig(data=("a", "b", "c"), lr=0.1, bf16=False)
    assert parsed(ModelOptions, "--dtype", "float16") == ModelOptions(dtype="float16")
    assert parsed(Budget, "--max-entries", "7") == Budget(max_entries=7)


# --- TOML --------------------------------------------------------------------------------------


def toml(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = toml(
        tmp_path, "[session]\nmin_segment_tokens = 4\ncandidates = 3\n[budget]\ncompression_ratio = 0.5\n"
    )
    _, call = cli.parse(["chat", "--config", str(path), "--min-segment-tokens", "8", "--max-entries", "99"])
    assert call.options(SessionConfig) == SessionConfig(min_segment_tokens=8, candidates=3.0)
    assert call.options(Budget) == Budget(max_entries=99)  # one limit: the flag's replaces the file's


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[budget]\ncompresion_ratio = 0.5",
            "unknown key 'compresion_ratio' in [budget]; did you mean compression_ratio?",
        ),
        ("[budgets]\nmax_entries = 5", "unknown section [budgets]; did you mean budget?"),
        ("budget = 5", "budget is a section"),
        ('[budget]\nmax_entries = "5"', "max_entries = '5' in [budget] must be a whole number"),
        ("[budget]\nmax_entries = true", "must be a whole number"),
        ("[session]\nreencode = 1", "must be true or false"),
        ("[session]\ncandidates = false", "must be a number"),
        ("[sampling]\nstop = [1]", "must be a list, each a text"),
        ('[session]\npositions = "mixed"', "must be original or compact"),
        ("[budget]\nmax_entries =", "not valid TOML"),
    ],
)
def test_bad_files_say_what_is_wrong(sonic: Any, tmp_path: Path, text: str, expected: str) -> None:
    code, _, error = sonic("chat", "--config", toml(tmp_path, text))
    assert code == 2
    assert_one_line(error)
    assert expected in error


def test_a_file_without_utf8_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(path, cli.SECTIONS)


# --- failures ----------------------------------------------------------------------------------


def test_missing_files_exit_1(sonic: Any, tmp_path: Path, model_folder: Path) -> None:
    absent = tmp_path / "absent"
    for arguments in (
        ["inspect", absent],
        ["chat", "--config", absent],
        ["chat", "--model", absent],
        ["chat", "--model", model_folder, "--adapter", absent],
        ["chat", "--model", model_folder, "--load", absent],
        ["demo", "--model", model_folder, "--dialogue", absent],
        ["data", "synth", "--dialogues", "1", "--out", absent / "x.jsonl"],
    ):
        code, out, error = sonic(*arguments)
        assert (code, out) == (1, "")
        assert_one_line(error)
        assert "absent" in error


def test_debug_shows_the_traceback(sonic: Any, tmp_path: Path) -> None:
    _, _, error = sonic("inspect", tmp_path / "absent", "--debug")
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("sonic-kv: error: ")


def test_an_unexpected_error_is_one_line_too(
    sonic: Any, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.setattr(Repl, "run", lambda _: 1 / 0)
    code, _, error = sonic("chat", "--model", model_folder)
    assert (code, error) == (1, "sonic-kv: error: ZeroDivisionError: division by zero (see --debug)\n")


def test_interrupting_is_quiet(sonic: Any, monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    def interrupt(_: Repl) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Repl, "run", interrupt)
    assert sonic("chat", "--model", model_folder) == (130, "", "")


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    command = f"{sys.executable} -m sonic_kv.cli data synth --dialogues 3000 | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["messages"]
    assert result.stderr == ""


@pytest.mark.parametrize(("variable", "expected"), [(None, [1]), ("2", [])])
def test_a_small_model_decodes_on_one_thread_unless_told(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, variable: str | None, expected: list[int]
) -> None:
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    load_for_decoding(ModelOptions(model=str(model_folder)))
    assert found == expected


# --- chat --------------------------------------------------------------------------------------

CHAT = ("--max-new-tokens", "6", "--min-segment-tokens", "8", "--compression-ratio", "0.5")


def test_chat_answers_each_line_and_reports_on_stderr(sonic: Any, model_folder: Path) -> None:
    code, out, error = sonic("chat", "--model", model_folder, *CHAT, stdin="hello there\n\nand again\n")
    assert code == 0
    assert out.count("\n") >= 2
    status = error.splitlines()
    assert len(status) == 2
    for line in status:
        found = re.fullmatch(
            r"Reply: (\d+) tokens in [\d.]+ s \(\d+ a second\)\.(.*) "
            r"The cache holds (\d+) of (\d+) tokens: [\d.]+ k?B instead of [\d.]+ k?B\.",
            line,
        )
        assert found is not None
        assert ("cut by its limit" in found[2]) == (found[1] == "6")
        assert int(found[3]) < int(found[4])


def test_chat_says_so_while_nothing_has_been_closed(sonic: Any, model_folder: Path) -> None:
    code, _, error = sonic("chat", "--model", model_folder, "--max-new-tokens", "6", stdin="hello there\n")
    assert code == 0
    assert re.search(r"The cache holds all \d+ tokens; nothing has been compressed yet\.\n", error)


def test_chat_json_has_one_object_per_reply(sonic: Any, model_folder: Path) -> None:
    _, out, _ = sonic("chat", "--model", model_folder, *CHAT, "--json", stdin="hello\nagain\n")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["finish_reason"] in ("stop", "length")
    assert second["stats"]["logical_tokens"] > first["stats"]["logical_tokens"]
    assert second["stats"]["bytes"] < second["stats"]["full_bytes"]


def test_chat_without_a_budget_has_the_sessions_default(
    sonic: Any, model_folder: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "session"
    sonic("chat", "--model", model_folder, "--max-new-tokens", "6", stdin=f"hello\n/save {saved}\n")
    _, out, _ = sonic("inspect", saved, "--json")
    assert json.loads(out)["budget"] == dataclasses.asdict(DEFAULT_BUDGET)
    percent = f"{DEFAULT_BUDGET.compression_ratio:.0%}".replace("%", " %")
    assert percent in next(command.help for command in cli.COMMANDS if command.name == "chat")


def test_chat_text_is_what_the_session_answers(sonic: Any, model_folder: Path) -> None:
    _, out, _ = sonic(
        "chat", "--model", model_folder, *CHAT, "--json", "--system", "be brief", stdin="hello\n"
    )
    _, call = cli.parse(["chat", "--model", str(model_folder), *CHAT])
    session = ChatSession(
        load_model(call.options(ModelOptions)),
        call.options(Budget),
        "be brief",
        call.options(SessionConfig),
        call.options(SamplingConfig),
    )
    assert json.loads(out)["text"] == session.send("hello").text


def test_chat_commands(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "session.safetensors"
    lines = (
        f"hello there, friend\n/stats\n/budget 0.9\n/save {saved}\n/load {saved}\n/help\n/quit\nnever said\n"
    )
    code, _, error = sonic("chat", "--model", model_folder, *CHAT, stdin=lines)
    assert code == 0
    for expected in (
        "| segment | tokens | entries |",
        f"saved to {saved}",
        "2 messages loaded",
        "/budget 0.9   comp",
    ):
        assert expected in error
    code, out, error = sonic("chat", "--model", model_folder, "--load", saved, "--json", stdin="go on\n")
    assert code == 0, error
    assert json.loads(out)["usage"]["completion_tokens"] <= 6  # sampling was saved too


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [
        ("/save", 2, "/save needs a file name"),
        ("/budget much", 2, "give a ratio such as 0.9"),
        ("/budget 7", 2, "outside [0, 1)"),
        ("/load /nowhere/session", 1, "/nowhere/session"),
        ("x" * 600, 1, "positions"),
    ],
)
def test_a_bad_line_ends_piped_chat(
    sonic: Any, model_folder: Path, line: str, code: int, expected: str
) -> None:
    found, out, error = sonic("chat", "--model", model_folder, *CHAT, stdin=line + "\n")
    assert (found, out) == (code, "")
    assert_one_line(error)
    assert expected in error


def test_a_path_in_a_pipe_is_a_message(sonic: Any, model_folder: Path) -> None:
    code, out, error = sonic(
        "chat", "--model", model_folder, *CHAT, "--json", stdin="/foo\n/etc/passwd?\n/quit\n"
    )
    assert code == 0, error
    assert len(out.splitlines()) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_stops_a_reply_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written of the reply stays; a message without any of it is forgotten; at the prompt nothing happens."""
    chat = ChatSession(tiny_model(), sampling=SamplingConfig(max_new_tokens=12))
    whole = chat.fork().send("hello").text
    typed: list[str | type[KeyboardInterrupt]] = ["hello", KeyboardInterrupt, "again", "/quit"]
    stops = iter([3, 1])  # at a piece of each reply

    def prompt(_: str) -> str:
        line = typed.pop(0)
        if isinstance(line, str):
            return line
        raise line

    def interrupted(session: ChatSession, text: str | None) -> Iterator[str]:
        stop = next(stops)
        for number, piece in enumerate(said(session, text), start=1):
            if number == stop:
                raise KeyboardInterrupt
            yield piece

    said = ChatSession.stream
    monkeypatch.setattr("builtins.input", prompt)
    monkeypatch.setattr(ChatSession, "stream", interrupted)
    Repl(chat.model, chat, as_json=False, source=Terminal()).run()
    out, error = capsys.readouterr()
    assert error.count("stopped") == 2
    assert "/quit ends the chat" in error
    (user, reply) = chat.messages
    assert user["content"] == "hello"
    assert reply["content"] == out
    assert whole.startswith(out)
    assert 0 < len(out) < len(whole)
    assert not typed


def test_an_error_does_not_end_a_chat_at_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/nonsense", "/sav x", "x" * 600, "hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    model = tiny_model()
    chat = ChatSession(model)
    Repl(model, chat, as_json=True, source=Terminal()).run()
    out, error = capsys.readouterr()
    assert error.count("error: ") == 3
    assert "unknown command /sav; did you mean save?" in error
    assert len(out.splitlines()) == 1
    assert [message["content"] for message in chat.messages][:1] == ["hello"]


def test_a_saved_session_keeps_its_settings(sonic: Any, model_folder: Path) -> None:
    code, _, error = sonic(
        "chat", "--model", model_folder, "--load", "x", "--allocation", "per_head", "--system", "hi"
    )
    assert code == 2
    assert "keeps its own allocation, system" in error


def test_budgets_are_read_as_written() -> None:
    assert parse_budget("0.9") == Budget(compression_ratio=0.9)
    assert parse_budget("compression_ratio=0.9") == Budget(compression_ratio=0.9)
    assert parse_budget("max_entries=512") == Budget(max_entries=512)
    assert parse_budget("max_damage=0.02") == Budget(max_damage=0.02)
    assert parse_budget("max_bytes=1000") == Budget(max_bytes=1000)
    with pytest.raises(ConfigError):
        parse_budget("min_entries=5")


# --- inspect -----------------------------------------------------------------------------------


def test_inspect_a_model_and_its_adapter(sonic: Any, model_folder: Path) -> None:
    code, out, error = sonic("inspect", model_folder, "--json")
    facts = json.loads(out)
    assert (code, facts["kind"], facts["model_type"]) == (0, "model", "qwen3")
    assert facts["entry_bytes_float32"] == 2 * 3 * 2 * 8 * 4  # keys and values, layers, KV heads, head_dim
    assert facts["parameters"] == sum(w.numel() for w in tiny_model().base.parameters())
    assert facts["adapter"]["config"]["lora_rank"] == 4
    code, out, _ = sonic("inspect", model_folder / "adapter.safetensors")
    assert code == 0, error
    assert "kind: adapter" in out
    assert "  lora rank: 4" in out


def test_inspect_a_session(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    chat = ChatSession(tiny_model(), Budget(compression_ratio=0.5))
    chat.extend(DIALOGUE)
    chat.save(tmp_path / "session")
    code, out, _ = sonic("inspect", tmp_path / "session", "--json")
    facts = json.loads(out)
    assert (code, facts["kind"], facts["messages"]) == (0, "session", DIALOGUE)
    assert facts["budget"]["compression_ratio"] == 0.5
    code, out, _ = sonic("inspect", tmp_path / "session")
    assert "messages: 8 items" in out


def test_inspect_refuses_what_is_nothing_of_ours(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sofa"}', encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.write_bytes((model_folder / "adapter.safetensors").read_bytes()[:100])
    expected = {tmp_path: "not the configuration", empty: "neither a model", broken: "damaged"}
    for target, message in expected.items():
        code, _, error = sonic("inspect", target)
        assert code == 1
        assert_one_line(error)
        assert message in error
    assert "not written by sonic-kv" in sonic("inspect", model_folder / "model.safetensors")[2]


# --- data --------------------------------------------------------------------------------------


def test_data_synth_writes_lines_or_a_file(sonic: Any, tmp_path: Path) -> None:
    _, out, _ = sonic("data", "synth", "--dialogues", "3", "--seed", "5")
    lines = out.splitlines()
    assert len(lines) == 3
    path = tmp_path / "some.jsonl.gz"
    assert sonic("data", "synth", "--dialogues", "3", "--seed", "5", "--out", path) == (
        0,
        "",
        "sonic-kv: dialogues written: 3\n",
    )
    assert gzip.decompress(path.read_bytes()).decode().splitlines() == lines


def test_a_pipe_stays_a_pipe(sonic: Any, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        assert sonic("data", "synth", "--dialogues", "1", "--out", path) == (
            0,
            "",
            "sonic-kv: dialogues written: 1\n",
        )
        assert len(reader.read().splitlines()) == 1
    assert path.is_fifo()


def test_an_interrupted_file_is_the_one_before(
    sonic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: SynthConfig) -> Iterator[dict[str, Any]]:
        yield {"messages": []}
        raise KeyboardInterrupt

    path = tmp_path / "some.jsonl"
    path.write_text("before")
    monkeypatch.setattr(synth, "generate_dialogues", interrupted)
    assert sonic("data", "synth", "--out", path) == (130, "", "")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


# --- train -------------------------------------------------------------------------------------


def test_train_writes_an_adapter_that_chat_loads(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    options = toml(
        tmp_path,
        "[synth]\nmin_exchanges = 2\nmax_exchanges = 3\n[train]\nmax_steps = 9\nscale_dialogues = 2\n",
    )
    arguments = ["--config", options, "--model", model_folder, "--out", tmp_path / "run", "--lora-rank", "2"]
    arguments += ["--data-share", "0", "--max-steps", "3", "--importance-steps", "1", "--batch-size", "1"]
    code, out, error = sonic("train", *arguments, "--no-bf16", "--json")
    assert code == 0, error
    result = json.loads(out)
    assert result["step"] == 3
    assert "distillation" in result
    header = json.loads(sonic("inspect", result["adapter"], "--json")[1])
    assert header["config"]["lora_rank"] == 2
    assert header["notes"]["synth"]["max_exchanges"] == 3
    code, out, error = sonic(
        "chat", "--model", model_folder, "--adapter", result["adapter"], *CHAT, stdin="hello\n"
    )
    assert code == 0, error


def test_progress_shows_what_is_learned_now(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    config = toml(tmp_path, "[synth]\nmin_exchanges = 2\nmax_exchanges = 3\n[train]\nscale_dialogues = 0\n")
    arguments = ["--config", config, "--model", model_folder, "--out", tmp_path / "run", "--data-share", "0"]
    arguments += ["--max-steps", "2", "--batch-size", "1", "--no-bf16", "--importance-steps", "1"]
    code, _, error = sonic("train", *arguments)
    assert code == 0, error
    assert "; choice " in error.splitlines()[-1]
    assert "importance" not in error.splitlines()[-1]


def test_one_of_several_training_processes_has_a_gpu_of_its_own(
    sonic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "97")
    code, _, error = sonic("train", "--device", "cuda")
    assert code == 2
    assert "cuda:97" in error


def test_train_of_a_finished_adapter_finds_what_its_scores_are_worth(
    sonic: Any, model_folder: Path, tmp_path: Path
) -> None:
    given = ["--model", model_folder, "--adapter", model_folder]
    code, _, error = sonic("chat", *given, "--max-damage", "0.1", stdin="hi\n")
    assert (code, "max_damage needs" in error) == (2, True)
    assert_one_line(error)
    config = toml(tmp_path, "[train]\nscale_dialogues = 3\n")
    code, out, error = sonic("train", *given, "--config", config, "--out", tmp_path / "out")
    assert code == 0, error
    assert "nats a later token" in error
    chat = ["chat", "--model", model_folder, "--adapter", out.strip(), "--max-damage", "0.1", "--json"]
    code, out, error = sonic(
        *chat, "--max-new-tokens", "4", "--min-segment-tokens", "1", stdin="hi there\nwhy?\n"
    )
    assert code == 0, error
    assert 0.0 <= json.loads(out.splitlines()[-1])["stats"]["predicted_damage"] <= 0.1


# --- demo --------------------------------------------------------------------------------------


def test_demo_shows_every_method_and_writes_a_page(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "demo.html"
    dialogue = tmp_path / "asked.jsonl"
    asked = {"messages": DIALOGUE, "questions": [{"message": 7, "answer": "Oslo"}]}
    dialogue.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    arguments = ["--model", model_folder, "--dialogue", dialogue, "--max-new-tokens", "4"]
    code, out, error = sonic("demo", *arguments, "--ratios", "0.5", "0.9", "--html", page)
    assert code == 0, error
    assert f"wrote {page}" in error
    names = "full context|history dropped|newest 50 % kept|50 % removed|90 % removed"
    rows = [line for line in out.splitlines() if re.match(rf"\| ({names}) ", line)]
    assert len(rows) == 5
    assert re.search(r"\n50 % removed: the cache takes .* instead of .*, and \d of 1 answers are right", out)
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", text)  # self-contained


def test_demo_replays_a_file_and_escapes_it(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    dialogue = tmp_path / "mine.jsonl"
    messages = [*DIALOGUE, {"role": "user", "content": "<script>alert(1)</script>"}]
    dialogue.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    page = tmp_path / "demo.html"
    code, out, error = sonic(
        "demo",
        "--model",
        model_folder,
        "--dialogue",
        dialogue,
        "--max-new-tokens",
        "3",
        "--html",
        page,
        "--json",
    )
    assert code == 0, error
    ways = json.loads(out)["ways"]
    assert [way["recall"] for way in ways] == [None] * 5  # nobody said what is right
    assert ways[0]["same"] == ways[0]["questions"] == 3
    full, dropped, newest, *compressed = (way["entries_after_closing"][0][-1] for way in ways)
    assert dropped == 0 < full
    assert sorted(compressed, reverse=True) == compressed
    assert compressed[0] < full
    assert newest == pytest.approx(compressed[0])  # the same number of entries
    assert "<script>" not in page.read_text(encoding="utf-8")


def test_the_demos_own_dialogues_say_what_they_ask_for() -> None:
    cases = demo.read(DemoOptions())
    assert len(cases) == 5
    for case in cases:
        first = min(question.message for question in case.questions)
        history = " ".join(message["content"] for message in case.messages[: first - 1])
        assert 8 <= len(case.messages) // 2 <= 12
        assert all(exact_match(history, question.answer) for question in case.questions)
        assert all(exact_match(case.messages[q.message]["content"], q.answer) for q in case.questions)


def test_demo_needs_questions(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    dialogue = tmp_path / "mine.jsonl"
    dialogue.write_text(json.dumps({"messages": DIALOGUE[:2]}) + "\n", encoding="utf-8")
    code, _, error = sonic("demo", "--model", model_folder, "--dialogue", dialogue)
    assert code == 1
    assert "no dialogue with a question" in error


# --- bad input ---------------------------------------------------------------------------------


def refused(sonic: Any, *arguments: str | Path, stdin: str = "hello\n") -> str:
    """The one line with which a command fails; nothing stands on standard output."""
    code, out, error = sonic(*arguments, stdin=stdin)
    assert (code, out) == (1, "")
    line = str(error).splitlines(keepends=True)[
        -1
    ]  # before it: what an adapter would bring, progress of loading
    assert_one_line(line)
    return line


def test_a_server_is_compiled_on_a_gpu_alone(sonic: Any) -> None:
    code, _, error = sonic("serve", "--compile")
    assert code == 2
    assert_one_line(error)
    assert "--compile of a server is for GPUs" in error


def test_an_adapter_for_another_model_is_refused(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    for changes, reason in (({"seed": 7}, "weights"), ({"num_hidden_layers": 2}, "num_hidden_layers")):
        other = tiny_model(**changes)
        assert other.adapter is not None
        path = other.adapter.save(tmp_path, other.fingerprint())
        error = refused(sonic, "chat", "--model", model_folder, "--adapter", path)
        assert f"made for another model: {reason} is" in error


def test_a_session_of_another_model_is_refused(sonic: Any, model_folder: Path, tmp_path: Path) -> None:
    chat = ChatSession(tiny_model(seed=7))
    chat.extend(DIALOGUE)
    chat.save(tmp_path / "session")
    assert "made for another model" in refused(
        sonic, "chat", "--model", model_folder, "--load", tmp_path / "session"
    )


@pytest.mark.parametrize("kind", ["session", "adapter"])
def test_damaged_files_are_refused(sonic: Any, model_folder: Path, tmp_path: Path, kind: str) -> None:
    model = tiny_model()
    chat = ChatSession(model)
    chat.extend(DIALOGUE)
    chat.save(tmp_path / "session")
    assert model.adapter is not None
    whole = tmp_path / "session" if kind == "session" else model.adapter.save(tmp_path, model.fingerprint())
    data = whole.read_bytes()
    flipped = bytearray(data)
    flipped[-5] ^= 1
    flag = "--load" if kind == "session" else "--adapter"
    for damaged in (
        b"",
        data[: len(data) // 2],
        data[:-1],
        bytes(flipped),
        data.replace(b"rank", b"tank"),
        b"{}" * 99,
    ):
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        if damaged != data:
            error = refused(sonic, "chat", "--model", model_folder, flag, path)
            assert str(path) in error
            assert str(path) in refused(sonic, "inspect", path)


def test_nan_weights_are_refused(sonic: Any, tmp_path: Path) -> None:
    model = tiny_model(adapter=False)
    with torch.no_grad():
        model.base.lm_head.weight[3] = torch.nan
    model.base.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert "NaN" in refused(sonic, "chat", "--model", tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": []}', "empty"),
        ('{"messages": [{"role": "robot", "content": "hi"}]}', "unknown role 'robot'"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "only text"),
        ('{"messages": [{"role": "user"}]}', "'role' and 'content'"),
        ('{"dialogue": []}', "'messages'"),
        ('{"messages": [', "line 2"),
    ],
)
def test_bad_dialogue_lines_are_named(
    sonic: Any, model_folder: Path, tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"messages": DIALOGUE}) + "\n" + line + "\n", encoding="utf-8")
    error = refused(sonic, "demo", "--model", model_folder, "--dialogue", path)
    assert f"{path}, line 2: " in error
    assert reason in error
