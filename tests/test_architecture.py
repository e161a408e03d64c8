"""Imports go down only: the level table of docs/architecture.md, held by reading the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sonic_kv

PACKAGE = Path(sonic_kv.__file__).parent

# A module may import from lower levels, and from its own level where no cycle arises. A folder
# stands for all modules in it.
LEVELS: dict[str, int] = {
    "errors": 0,
    "config": 0,
    "atomic": 1,
    "files": 1,
    "fingerprint": 1,
    "export": 1,
    "flags": 1,
    "human": 1,
    "segments": 1,
    "budget": 1,
    "selection": 1,
    "layout": 1,
    "quantize": 1,
    "growing": 2,
    "layers": 2,
    "adapter": 2,
    "cache": 2,
    "batch": 2,
    "compiled": 2,
    "attention": 2,
    "reread": 2,
    "losses": 2,
    "model": 3,
    "importance": 3,
    "compressor": 3,
    "generate": 3,
    "session": 3,
    "engine": 3,
    "training": 3,
    "data": 3,
    "server": 4,
    "integrations": 4,
    "bench": 4,
    "eval": 4,
    "cli": 5,
    "demo": 5,
    "demo_page": 5,
    "inspection": 5,
    "repl": 5,
}
# Modules that may know about transformers and PEFT. Only the first group touches their internals:
# it subclasses, patches or registers; the others call public entry points.
INTERNALS = {"adapter", "growing", "layers", "cache", "batch", "compiled", "attention"}
CALLERS = {"model", "bench", "cli"}  # bench: the plain cache it is compared with


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


def level(module: str) -> int:
    return LEVELS[module.split(".")[0]]


def named(module: str) -> bool:
    """Whether the module has a place in the table; the package itself and `__main__` need none."""
    return module not in ("", "__main__")


def test_every_module_has_a_level() -> None:
    missing = sorted({m.split(".")[0] for m in modules() if named(m)} - set(LEVELS))
    assert not missing, (
        f"no level for {', '.join(missing)}: add each to LEVELS in tests/test_architecture.py and to the "
        "table in docs/architecture.md (0 options and errors, 1 pure functions, 2 tensors and library "
        "internals, 3 the engine, training and data, 4 measurement, 5 what people call)"
    )


def test_imports_go_down_only() -> None:
    wrong = [
        f"sonic_kv/{source} (level {level(source)}), line {line}: imports {target} (level {level(target)})"
        for source, targets in edges().items()
        for target, line in targets.items()
        if named(source) and named(target) and level(target) > level(source)
    ]
    assert not wrong, "\n".join(wrong)


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

    for module in filter(named, graph):
        visit(module, ())


def test_only_a_few_modules_know_the_libraries() -> None:
    known = modules()
    wrong = [
        f"sonic_kv/{module}, line {line}: {name}"
        for module, path in known.items()
        for name, line in imported(path, module)
        if name.split(".")[0] in ("transformers", "peft") and module.split(".")[0] not in INTERNALS | CALLERS
    ]
    assert not wrong, "transformers and PEFT are reached through sonic_kv.model:\n" + "\n".join(wrong)


def test_level_table_is_documented() -> None:
    page = PACKAGE.parent.parent / "docs" / "architecture.md"
    if not page.exists():
        pytest.skip("installed without its documentation")
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    missing = [
        name
        for name, number in LEVELS.items()
        if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).exists()
        if not any(row.startswith(f"| {number} |") and f"`{name}`" in row for row in rows)
    ]
    assert not missing, f"docs/architecture.md: no row for {', '.join(missing)} at its level"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sonic_kv", ("torch", "transformers", "peft", "numpy")),
        ("from sonic_kv import Budget, SessionConfig, SamplingConfig, SonicError", ("torch", "transformers")),
        ("import sonic_kv.cli", ("torch", "transformers", "peft")),
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
