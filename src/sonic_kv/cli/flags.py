"""Command-line flags and TOML files from option dataclasses; a later source wins over an earlier one.

A dataclass is given as a *section*: its name stands as the table in a TOML file and as the heading in
`--help`. A field `min_segment_tokens` is the key `min_segment_tokens` and the flag
`--min-segment-tokens`. Defaults stay where they are, in the dataclass.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from sonic_kv.errors import ConfigError, FileError
from sonic_kv.options import fits, strip_none, type_hints, wanted
from sonic_kv.text import nearest, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Sections = Mapping[str, type]
_METAVARS = {int: "N", float: "X", str: "TEXT"}
Given = Mapping[str, Mapping[str, Any]]  # options by section and field name


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` instead of printing and exiting."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def flags(self) -> list[str]:
        """The long flags of this parser."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]


def _kind(hint: Any) -> dict[str, Any]:
    """What `add_argument` needs for a field of type `hint`."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint), "type": type(get_args(hint)[0])}
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return {"action": "extend", "nargs": "+", **_kind(item)}
    return {"type": hint, "metavar": _METAVARS[hint]}


def shown(default: Any) -> str:
    """A default as the help shows it."""
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def has_flag(field: "dataclasses.Field[Any]") -> bool:
    """False for an option that is set in a TOML file only."""
    return bool(field.metadata.get("flag", True))


def in_a_file(flag: str, sections: Sections) -> str:
    """Where an option stands that has no flag of this name, as the rest of a sentence; empty: nowhere."""
    name = flag.removeprefix("--").replace("-", "_")
    for section, cls in sections.items():
        if any(field.name == name for field in dataclasses.fields(cls)):
            return f": it is set in a file, as {name} in [{section}] (see --config)"
    return ""


def add_flags(parser: argparse.ArgumentParser, section: str, cls: type, *, flags: bool = True) -> None:
    """Add a flag for each field of the dataclass `cls` that has one. A flag that is not given leaves no trace.

    Args:
        flags: False: no field has one.
    """
    summary = (cls.__doc__ or section).strip().splitlines()[0]
    flagged = [field for field in dataclasses.fields(cls) if flags and has_flag(field)]
    rest = ", ".join(field.name for field in dataclasses.fields(cls) if field not in flagged)
    group = parser.add_argument_group(section, summary + (f" In a file only: {rest}." if rest else ""))
    hints = type_hints(cls)
    for field in flagged:
        unset = field.default in (None, ())  # the help text says what happens then
        default = "" if unset else f" (default: {shown(field.default)})"
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=f"{section}.{field.name}",
            default=argparse.SUPPRESS,
            help=f"{field.metadata['help']}{default}".replace("%", "%%"),
            **_kind(strip_none(hints[field.name])),
        )


def _fitting(value: Any, hint: Any) -> Any:
    """The TOML `value` as the type `hint`, which it fits: a list is a tuple, a whole number a number."""
    if isinstance(value, list):
        return tuple(_fitting(part, get_args(strip_none(hint))[0]) for part in value)
    return float(value) if strip_none(hint) is float else value


def read_toml(path: str | Path, sections: Sections) -> dict[str, dict[str, Any]]:
    """The options in a TOML file, by section and field name, checked against the dataclasses.

    Raises:
        FileError: the file cannot be read.
        ConfigError: it is not TOML, or holds an unknown section or key (the nearest is named), or a
            value of the wrong type.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:  # TOML syntax, or not UTF-8
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name, table in tables.items():
        if name not in sections:
            raise ConfigError(f"{path}: unknown section [{name}]{nearest(name, sections)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is a section: write [{name}] and its keys below")
        hints = type_hints(sections[name])
        for key, value in table.items():
            if key not in hints:
                raise ConfigError(f"{path}: unknown key {key!r} in [{name}]{nearest(key, hints)}")
            if not fits(value, hints[key]):
                raise ConfigError(f"{path}: {key} = {value!r} in [{name}] must be {wanted(hints[key])}")
            table[key] = _fitting(value, hints[key])
    return tables


def as_toml(options: Mapping[str, object]) -> str:
    """Options as a TOML file that `read_toml` reads: each under its help text, those without a value as comments.

    Args:
        options: an option dataclass for each section.
    """
    lines = []
    for section, values in options.items():
        lines += ["", f"[{section}]"]
        for field in dataclasses.fields(values):  # type: ignore[arg-type]
            value = getattr(values, field.name)
            unset = "# " if value is None else ""
            lines += [f"# {field.metadata['help']}", f"{unset}{field.name} = {_toml(value)}".rstrip()]
    return "\n".join(lines[1:])


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, str)):
        return json.dumps(value)
    return "" if value is None else repr(value)


def build(cls: type[T], section: str, *sources: Given, exclusive: bool = False) -> T:
    """The options of one section; of `sources` the later wins, field by field.

    `exclusive`: the fields exclude each other (a budget has one limit), so a later source that gives
    any of them replaces all of an earlier one.
    """
    values: dict[str, Any] = {}
    for source in sources:
        given = source.get(section, {})
        if given and exclusive:
            values.clear()
        values.update(given)
    return cls(**values)


def given_flags(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the command line gave, by section and field name."""
    found: dict[str, dict[str, Any]] = {}
    for dest, value in vars(arguments).items():
        section, dot, name = dest.partition(".")
        if dot:
            found.setdefault(section, {})[name] = tuple(value) if isinstance(value, list) else value
    return found
