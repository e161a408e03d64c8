"""Options: frozen dataclasses whose fields carry their default, their help text and their bounds, each written once.

Each folder keeps its own options beside what they configure, in modules without heavy imports: the command line
builds its flags from them without loading torch. A rule between several fields is a line in `check`.
"""

import dataclasses
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sonic_kv.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """Where a number must lie. One without an upper bound must be finite; `most=inf` allows infinity."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def fault(self, number: float) -> str | None:
        """What is wrong with `number`, as `must be at least 1` or `is outside [0, 1)`; None: nothing."""
        low, high = (self.least, self.most) if self.above is None else (self.above, self.most)
        high = high if self.below is None else self.below
        enough = low is None or (number >= low if self.above is None else number > low)
        small = number < inf if high is None else (number <= high if self.below is None else number < high)
        if enough and small:
            return None
        if low is not None and high is not None and high < inf:
            opened, closed = "[" if self.above is None else "(", "]" if self.below is None else ")"
            return f"is outside {opened}{low:g}, {high:g}{closed}"
        if enough or number != number:
            return "must be finite" if high in (None, inf) else f"must be at most {high}"
        if self.above is not None:
            return f"must be above {low:g}"
        return "must not be negative" if low == 0 else f"must be at least {low:g}"


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    filled: bool = False,
    size: bool = False,
    flag: bool = True,
) -> Any:
    """A dataclass field with its help text and its constraints.

    Bounds hold for a number and for each number of a tuple. The type of the field is checked too, and with it the
    choices of a `Literal`.

    Args:
        filled: a tuple must not be empty.
        size: a text that says a number of bytes, as `2GiB`.
        flag: the command line has a flag for it; otherwise it is set in a TOML file.
    """
    bounds = Bounds(least, above, most, below)
    metadata = {"help": help, "bounds": bounds, "filled": filled, "size": size, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


def share(default: Any, help: str, **more: Any) -> Any:
    """An `option` that is a share of a whole: from 0 to 1, both included."""
    return option(default, help, least=0.0, most=1.0, **more)


@dataclass(frozen=True)
class Options:
    """Base of all options: checks the type and the bounds of every field, then the rules between fields."""

    error: ClassVar[type[ConfigError]] = ConfigError

    def __post_init__(self) -> None:
        hints = type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as JSON has it
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            for fault in _faults(field, value, hints[field.name]):
                raise self.error(fault)
        self.check()

    def check(self) -> None:
        """Check the rules between several fields.

        Raises:
            ConfigError: two options contradict each other.
        """


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def expect(value: object, cls: type[T], name: str, advice: str = "") -> T:
    """`value`, which must be a `cls`; `name` is what the error calls it.

    Args:
        advice: how one is had; without it: how one is written, if it is a dataclass.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, cls):
        return value
    plain = value is None or isinstance(value, (int, float, str))
    given = repr(value) if plain else _article(type(value).__name__)
    advice = f": {advice}" if advice else _example(cls, value)
    raise ConfigError(f"{name} must be {_article(cls.__name__)}, not {given}{advice}")


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _example(cls: type, value: object) -> str:
    """How a `cls` is written that says what `value` was meant to say; empty if that cannot be known."""
    if not issubclass(cls, Options):
        return ""
    hints = type_hints(cls)
    if isinstance(value, dict):
        given = [f"{name}={part!r}" for name, part in value.items() if name in hints]
    else:  # the first field that takes it
        given = [f"{n}={value!r}" for n, hint in hints.items() if value is not None and fits(value, hint)][:1]
    return f": write {cls.__name__}({', '.join(given)})" if given else ""


def type_hints(cls: type) -> dict[str, Any]:
    """The types of the fields of a dataclass, by name."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: hint for name, hint in get_type_hints(cls).items() if name in names}


def strip_none(hint: Any) -> Any:
    """`X` for `X | None`; other types as they are."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def fits(value: object, hint: Any) -> bool:
    """True if `value` is of the type `hint`. A whole number is a number, and true or false is neither."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return any(value == known and type(value) is type(known) for known in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, (tuple, list)) and all(fits(part, get_args(hint)[0]) for part in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)


def wanted(hint: Any) -> str:
    """What a field of the type `hint` takes, in words: `a whole number`, `original or compact`."""
    hint = strip_none(hint)
    if get_origin(hint) is Literal:
        *others, last = map(str, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(hint) is tuple:
        return f"a list, each {wanted(get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "a text")


def _faults(field: "dataclasses.Field[Any]", value: Any, hint: Any) -> Iterator[str]:
    """What is wrong with the value of one field."""
    name, rules = field.name, field.metadata
    if not fits(value, hint):
        yield f"{name}={value!r} must be {wanted(hint)}"
    elif value is None or "bounds" not in rules:
        return
    elif rules["size"] and parse_bytes(value) <= 0:
        yield f"{name}={value} must be above 0"
    elif rules["filled"] and not value:
        yield f"{name} is empty: give at least one"
    bounds: Bounds = rules["bounds"]
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            fault = bounds.fault(number)
            if fault is not None:
                yield f"{name}={number!r} {fault}"


_UNITS = {"B": 1, **{p + "B": 1000**i for i, p in enumerate("kMGT", 1)}}
_UNITS |= {p + "iB": 1024**i for i, p in enumerate("KMGT", 1)}


def parse_bytes(text: str) -> int:
    """`"2GiB"` → 2147483648; also kB, MB, GB (powers of 1000), KiB, MiB, or a plain number of bytes.

    Raises:
        ConfigError: it is no such text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kKMGT]?i?B)?", text.strip())
    if match is None or (match[2] or "B") not in _UNITS:
        raise ConfigError(f"{text!r} is no number of bytes: write 2GiB, 500MB or 1000000")
    return int(float(match[1]) * _UNITS[match[2] or "B"])
