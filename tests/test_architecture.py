"""Imports go down only: the order of docs/house.py, held by reading the source."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sonic_kv
from sonic_kv.cli.flags import has_flag
from sonic_kv.cli.main import COMMANDS

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
from house import LEVELS, PACKAGE, draw, edges, folder, imported, is_options, modules

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


def test_the_picture_of_the_house_is_of_this_code() -> None:
    picture = PACKAGE.parent.parent / "docs" / "house.svg"
    assert picture.read_text(encoding="utf-8") == draw(), "python docs/house.py draws it anew"


def test_no_room_is_too_large_to_read() -> None:
    long = {
        name: path for name, path in modules().items() if path.read_text(encoding="utf-8").count("\n") > 450
    }
    functions = [
        f"{name}.{node.name}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if (node.end_lineno or 0) - node.lineno > 60
    ]
    assert not long
    assert not functions


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


# What sessions and caches are called; they are changed by their own methods, whoever holds one.
OWNED = {"session", "chat", "dialogue", "draft", "cache", "lengths", "layer"}
OWNERS = {"cache", "session"}


def owned_attributes() -> set[str]:
    """What sessions and caches consist of."""
    from sonic_kv.cache.cache import Lengths, SessionCache
    from sonic_kv.session.dialogue import Dialogue

    cache = SessionCache(1)
    own = {field.name for cls in (Dialogue, Lengths) for field in dataclasses.fields(cls)}
    return own | {*vars(cache), *vars(cache.layers[0]), "dialogue", "last_reply"}


def changed_attributes(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Every attribute that is assigned or deleted: the name before the dot, its own, and the line."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load):
                    of = part.value
                    name = (
                        of.id
                        if isinstance(of, ast.Name)
                        else of.attr
                        if isinstance(of, ast.Attribute)
                        else ""
                    )
                    yield name, part.attr, part.lineno


def test_sessions_and_caches_are_changed_by_their_own_methods_alone() -> None:
    own = owned_attributes()
    assert {"budget", "sampling", "token_ids", "bits", "_lengths", "passed"} <= own
    wrong = [
        f"sonic_kv/{module}, line {line}: {name}.{attribute} = …"
        for module, path in modules().items()
        for name, attribute, line in changed_attributes(ast.parse(path.read_text(encoding="utf-8")))
        if name in OWNED and attribute in own and folder(module) not in OWNERS
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_made_around_its_constructor() -> None:
    wrong = [
        f"sonic_kv/{module}, line {node.lineno}"
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "__new__"
    ]
    assert not wrong, "\n".join(wrong)


CHANGES = {"unpack", "pack", "keep", "restore", "append", "hold", "update", "drop_newest", "feed"}


def test_asking_a_property_changes_nothing() -> None:
    wrong = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            if not any(isinstance(by, ast.Name) and by.id == "property" for by in node.decorator_list):
                continue
            assigned = [f"{name}.{attribute}" for name, attribute, _ in changed_attributes(node)]
            called = [
                f"self.{call.func.attr}()"
                for call in ast.walk(node)
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
                if isinstance(call.func.value, ast.Name)
                and call.func.value.id == "self"
                and call.func.attr in CHANGES
            ]
            wrong += [f"sonic_kv/{module}, {node.name}: {what}" for what in (*assigned, *called)]
    assert not wrong, "\n".join(wrong)


def test_every_operation_exists_once() -> None:
    """No method has a twin that does the same in steps (extend, extending)."""

    def twins(name: str) -> set[str]:
        return {f"{name}ing", f"{name[:-1]}ing", f"{name}{name[-1]}ing"}

    wrong = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                wrong += [
                    f"sonic_kv/{module}, {node.name}.{n}" for n in names if len(n) > 3 and twins(n) & names
                ]
    assert not wrong, "\n".join(wrong)


def test_how_much_may_stay_is_computed_in_one_place() -> None:
    calls = [
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "target_entries"
    ]
    assert calls == ["compress.closing"]


def test_a_session_is_learnt_in_one_look() -> None:
    public = [
        name
        for name, value in vars(sonic_kv.ChatSession).items()
        if name[0] != "_" and not isinstance(value, property)
    ]
    assert len(public) <= 13, ", ".join(sorted(public))


def test_flags_are_few() -> None:
    """Each section counts once; what is left of the options stands in files only."""
    flags = {
        command.name: {
            section: sum(map(has_flag, dataclasses.fields(section)))
            for name, section in command.sections.items()
            if name not in command.file_only
        }
        for command in COMMANDS
    }
    assert sum({section: n for found in flags.values() for section, n in found.items()}.values()) <= 130
    assert sum(flags["train"].values()) <= 40
    assert sum(flags["serve"].values()) <= 40


def test_no_name_of_a_comprehension_hides_one_of_the_module() -> None:
    """Python 3.12 then takes the module's for a local one that has no value yet."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        above = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        above |= {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        names = {
            name.id
            for node in ast.walk(tree)
            if isinstance(node, ast.comprehension)
            for name in ast.walk(node.target)
            if isinstance(name, ast.Name)
        }
        wrong += [f"{path.relative_to(PACKAGE)}: {name}" for name in sorted(names & above)]
    assert not wrong, f"rename these variables: {', '.join(wrong)}"
