"""The pages that people read: their links lead somewhere, their code runs, their commands are accepted.

The tiny model stands in for every model that a page names, and a server on a free port for the one at port 8000.
Log entries are records: their commands are those of their day.
"""

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from serving import serving

from sonic_kv import SonicModel
from sonic_kv.cli.flags import read_toml
from sonic_kv.cli.main import SECTIONS, main, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "docs" / "log"
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
CURRENT = [page for page in PAGES if page.parent != LOG and page.name != "CHANGELOG.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
OTHERS = {
    "cd",
    "echo",
    "export",
    "curl",
    "docker",
    "git",
    "vllm",
    ".venv/bin/pre-commit",
}  # not ours to check


@dataclass(frozen=True)
class Block:
    """A code block of a page, and the line on which it begins."""

    page: Path
    line: int
    language: str
    text: str


def name(page: Path) -> str:
    """A page's path, as the test's name shows it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page; of the log's entries none."""
    text = page.read_text(encoding="utf-8")
    if page.parent == LOG:
        return
    for found in FENCE.finditer(text):
        body = re.sub(rf"^{found[1]}", "", found[3], flags=re.M)
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[2], body)


def has(language: str) -> list[Path]:
    """The pages that have blocks of a language."""
    return [page for page in PAGES if any(block.language == language for block in blocks(page))]


# --- links ------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {
        re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).strip().replace(" ", "-") for head in heads
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if ":" in target:
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{name(page)}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(found), f"{name(page)}: {link} is no heading there"


def test_the_logs_index_names_every_experiment() -> None:
    index = (LOG / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"^- \d{4}-\d\d-\d\d · \[.+\]\((.+)\)$", index, re.M)
    assert sorted(named) == sorted(path.name for path in LOG.glob("*.md") if path.name != "index.md")


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_names_of_the_code_exist(page: Path) -> None:
    folders = [path.name for path in (ROOT / "src" / "sonic_kv").iterdir() if path.is_dir()]
    names = set(re.findall(r"`([\w.]+\w)(?:\(\))?`", page.read_text(encoding="utf-8")))
    for dotted in sorted(names):
        first = dotted.partition(".")[0]
        if page.name == "architecture.md" and first in folders and first != dotted:
            dotted = f"sonic_kv.{dotted}"
        if dotted.startswith("sonic_kv.") and not (".vllm" in dotted and find_spec("vllm") is None):
            assert resolve_name(dotted), f"{name(page)}: {dotted}"


# --- Python -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> SonicModel:
    """The model that ships."""
    return SonicModel.from_pretrained("tiny")


@pytest.fixture
def anywhere(tiny: SonicModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; every model that code loads is the tiny one."""
    monkeypatch.setattr(SonicModel, "from_pretrained", classmethod(lambda *_, **__: tiny))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, place: str, names: dict[str, Any]) -> str:
    """Run code; returns what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, place, "exec"), names)
    return printed.getvalue()


@pytest.mark.parametrize("page", has("python"), ids=name)
def test_python_blocks_run(page: Path, anywhere: Path) -> None:
    (anywhere / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    names: dict[str, Any] = {}  # blocks of a page go on from those before
    with contextlib.ExitStack() as stack:
        for block in blocks(page):
            if block.language != "python":
                continue
            code = block.text.replace("/srv/exports", str(anywhere / "exports"))
            if "http://127.0.0.1:8000" in code:
                model = re.search(r'model="([^"]+)"', code)
                served = serving(SonicModel.from_pretrained(), served_model_name=(model[1],) if model else ())
                code = code.replace("http://127.0.0.1:8000", stack.enter_context(served).url)
            run(code, f"{name(page)}:{block.line}", names)


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_examples_run(
    example: Path, anywhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(example), "tiny"])
    if example.name == "vllm_prefix.py" and find_spec("vllm") is None:
        with pytest.raises(SystemExit, match="needs vLLM: pip install"):
            runpy.run_path(str(example), run_name="__main__")
        return
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_run(notebook: Path, anywhere: Path) -> None:
    names: dict[str, Any] = {}
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not committed"
            run("".join(cell["source"]), f"{name(notebook)}:{number}", names)


# --- commands and files -----------------------------------------------------------------------


def commands(block: Block) -> Iterator[list[str]]:
    """The simple commands of a console block, without variables, redirections and `$`."""
    line = ""
    for part in block.text.replace("\\\n", " ").splitlines():
        line = f"{line}\n{part}".strip().removeprefix("$ ")
        try:
            split = shlex.split(line, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        line, words = "", list[str]()
        for word in [*split, ";"]:
            if word not in ("&&", "|", ";", "&"):
                if words or not re.fullmatch(r"\w+=.*", word):
                    words.append(word)
            elif words:
                yield words
                words = []
    assert not line, f"a quotation has no end: {line}"


def check_ours(arguments: list[str]) -> None:
    """A `sonic-kv` command line: the parser takes it, and so do the options."""
    command, call = parse([word for word in arguments if word not in ("…", "...")])
    for cls in command.sections.values():
        call.options(cls)


def check(words: list[str]) -> None:
    """Check one command line of a page, in the folder that it is meant for."""
    first, *rest = words
    if first == "accelerate":
        assert Path(rest[rest.index("--config_file") + 1]).is_file()
        first, rest = "sonic-kv", rest[rest.index("sonic_kv.cli") + 1 :]
    if first == "sonic-kv":
        check_ours(rest)
    elif first == "make":
        assert [word for word in rest if "=" not in word and word not in TARGETS] == []
    elif first == "pip":
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert [extra for extra in extras.split(",") if extra not in EXTRAS] == []
    elif first == "python":
        source = Path(rest[0]).read_text(encoding="utf-8")
        source += "".join(path.read_text(encoding="utf-8") for path in Path(rest[0]).parent.glob("*.py"))
        for flag in (word for word in rest[1:] if word.startswith("--")):
            assert f'"{flag}"' in source, f"{rest[0]} has no {flag}"
    elif first == "pytest":
        assert Path(rest[0]).is_file()
    else:
        assert first in OTHERS, f"say in this test how `{first}` is checked"


@pytest.mark.parametrize("page", has("console"), ids=name)
def test_commands_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(page):
        if block.language != "console":
            continue
        monkeypatch.chdir(ROOT)
        for words in commands(block):
            if words[0] == "cd" and (ROOT / words[1]).is_dir():
                monkeypatch.chdir(ROOT / words[1])
            elif words[0] != "cd":
                beside = page.parent if "recipes" in page.parts and words[0] != "accelerate" else Path.cwd()
                here = [word for word in words if word.endswith((".py", ".toml")) and "/" not in word]
                if here and (beside / here[0]).is_file():
                    monkeypatch.chdir(beside)
                try:
                    check(words)
                except Exception as error:
                    raise AssertionError(
                        f"{name(page)}:{block.line}: {shlex.join(words)}: {error}"
                    ) from error


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_commands_within_sentences_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for command in re.findall(r"`sonic-kv ([^`]+)`", text):
        words = shlex.split(command)
        try:
            check_ours(words if words[-1] not in ("bench", "data") else [*words, "--help"])
        except SystemExit:  # the help of a group
            pass
        except Exception as error:
            raise AssertionError(f"{name(page)}: sonic-kv {command}: {error}") from error


def cheap() -> list[list[str]]:
    """Command lines of pages that take no time: what compression saves for well-known models."""
    lines = [words for page in has("console") for block in blocks(page) for words in commands(block)]
    known = [words for words in lines if words[:2] == ["sonic-kv", "plan"] and "path" not in words[2]]
    assert known
    return known


@pytest.mark.parametrize("words", cheap(), ids=shlex.join)
def test_cheap_commands_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words[1:]) == 0
    assert "dialogue" in capsys.readouterr().out


@pytest.mark.parametrize("page", sorted({*has("toml"), *has("json")}), ids=name)
def test_settings_and_json_are_what_they_say(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            file = tmp_path / "settings.toml"
            file.write_text(block.text, encoding="utf-8")
            for section, values in read_toml(file, SECTIONS).items():
                SECTIONS[section](**values)


def test_no_block_is_of_a_language_that_nothing_checks() -> None:
    found = {block.language for page in PAGES for block in blocks(page)}
    assert found <= {"python", "console", "toml", "json"}
