"""Imports go down only: the order of docs/house.py, held by reading the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sonic_kv

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
from house import LEVELS, PACKAGE, edges, folder, imported, is_options, modules

# Folders that may know about transformers and PEFT: `model` and `cache` touch their internals (subclass, patch,
# register); the others call public entry points.
LIBRARIES = {"model", "cache", "bench", "cli"}


def test_every_module_stands_in_a_known_folder() -> None:
    unknown = sorted({folder(m) for m in modules() if m} - set(LEVELS))
    assert not unknown, (
        f"no place for {', '.join(unknown)}: see FOLDERS in docs/house.py, and docs/architecture.md"
    )


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


def runs_a_model(call: ast.Call) -> bool:
    """Whether a call is one of a base, a twin, or the decoder of one."""
    names = ("base", "plain", "twin")
    match call.func:
        case ast.Attribute(attr=name):
            return name in names and bool(call.args or call.keywords)
        case ast.Call(func=ast.Attribute(attr="get_decoder")):
            return True
    return False


def test_models_are_run_in_one_place() -> None:
    """The benchmarks time the base itself beside it, as its users call it."""
    assert runs_a_model(ast.parse("self.model.base(ids)", mode="eval").body)  # type: ignore[arg-type]
    wrong = [
        f"sonic_kv/{module}, line {node.lineno}"
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and runs_a_model(node)
        if module != "model.forward" and folder(module) != "bench"
    ]
    assert not wrong, "to run a model is sonic_kv.model.forward's work:\n" + "\n".join(wrong)


def test_attention_is_chosen_in_one_place() -> None:
    wrong = [
        f"sonic_kv/{module}, line {node.lineno}"
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "_attn_implementation"
        if isinstance(node.ctx, ast.Store) and module != "model.attention"
    ]
    assert not wrong, "a model's attention is its user's; twins have their own:\n" + "\n".join(wrong)


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
