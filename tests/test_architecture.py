"""Imports go down only: the level table of docs/architecture.md, held by reading the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sonic_kv

PACKAGE = Path(sonic_kv.__file__).parent

# A folder imports from those above it only. A folder's name stands for all modules in it.
FOLDERS = (
    ("errors",),
    ("options", "text"),
    ("files",),
    ("cache",),
    ("model",),
    ("compress",),
    ("session", "data"),
    ("training", "server", "eval"),
    ("bench", "integrations"),
    ("cli",),
)
LEVELS = {name: number for number, names in enumerate(FOLDERS) for name in names}
# Options are plain data and can be read from anywhere: they import nothing but each other.
OPTIONS = "options"
# Folders that may know about transformers and PEFT: `model` and `cache` touch their internals (subclass, patch,
# register); the others call public entry points.
LIBRARIES = {"model", "cache", "bench", "cli"}


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name below `sonic_kv`; the package itself is ''."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, package: str) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a file imports anywhere (inside functions too), with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = f"sonic_kv.{package}".rstrip(".").split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def home(name: str, known: dict[str, Path]) -> str | None:
    """The module of this package that a dotted import name refers to; None for other packages."""
    if name.split(".")[0] != "sonic_kv":
        return None
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def edges() -> dict[str, dict[str, int]]:
    """For every module the modules of this package it imports, with the line of the import."""
    known = modules()
    graph: dict[str, dict[str, int]] = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = ((home(target, known), line) for target, line in imported(path, package))
        graph[name] = {target: line for target, line in targets if target is not None and target != name}
    return graph


def folder(module: str) -> str:
    return module.split(".")[0]


def is_options(module: str) -> bool:
    return module.rpartition(".")[2] == OPTIONS


def test_every_module_stands_in_a_known_folder() -> None:
    unknown = sorted({folder(m) for m in modules() if m} - set(LEVELS))
    assert not unknown, f"no place for {', '.join(unknown)}: see FOLDERS here, and docs/architecture.md"


def test_the_top_level_is_readable_in_one_look() -> None:
    beside = [name for name in modules() if name and (PACKAGE / f"{name}.py").exists()]
    assert sorted(beside) == ["errors", "files", "options", "text"]


def test_folders_import_downwards_only() -> None:
    wrong = [
        f"sonic_kv/{source}, line {line}: imports {target}"
        for source, targets in edges().items()
        for target, line in targets.items()
        if source and target and folder(source) != folder(target) and not is_options(target)
        if LEVELS[folder(target)] >= LEVELS[folder(source)]
    ]
    assert not wrong, "\n".join(wrong)


def test_options_import_options_only() -> None:
    wrong = [
        f"{source}: {target}"
        for source, targets in edges().items()
        for target in targets
        if is_options(source) and not (is_options(target) or target == "errors" or not target)
    ]
    assert not wrong


def test_no_import_cycles() -> None:
    graph = edges()
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in graph[module]:
                if target:
                    visit(target, (*trail, module))
            done.add(module)

    for module in filter(None, graph):
        visit(module, ())


def test_only_a_few_folders_know_the_libraries() -> None:
    wrong = [
        f"sonic_kv/{module}, line {line}: {name}"
        for module, path in modules().items()
        for name, line in imported(path, module)
        if name.split(".")[0] in ("transformers", "peft") and folder(module) not in LIBRARIES
    ]
    assert not wrong, "transformers and PEFT are reached through sonic_kv.model:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sonic_kv", ("torch", "transformers", "peft", "numpy")),
        ("from sonic_kv import Budget, SessionConfig, SamplingConfig, SonicError", ("torch", "transformers")),
        ("import sonic_kv.cli.main", ("torch", "transformers", "peft")),
    ],
)
def test_light_imports_stay_light(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys; print(*[m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_public_names_load_on_first_use() -> None:
    for name in sonic_kv.__all__:
        assert getattr(sonic_kv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sonic_kv.nonsense
