"""Options: every field is checked against its type and its bounds, with one clear line."""

import dataclasses
from dataclasses import dataclass
from math import inf, nan
from typing import Any, Literal, get_args, get_origin

import pytest

from sonic_kv.cli.main import COMMANDS
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import BudgetError, ConfigError
from sonic_kv.options import Bounds, Options, expect, option, parse_bytes, share, strip_none, type_hints
from sonic_kv.session.options import SamplingConfig

CLASSES = sorted(
    {cls for command in COMMANDS for cls in command.sections.values()}, key=lambda cls: str(cls.__name__)
)


@dataclass(frozen=True)
class Some(Options):
    """One field of every kind."""

    count: int = option(3, "how many", least=1)
    part: float = share(0.5, "of a whole")
    rate: float | None = option(None, "none or above 0", above=0.0)
    norm: float = option(1.0, "up to the maximum", least=1.0, most=inf)
    ratios: tuple[float, ...] = option((0.5,), "each in [0, 1)", least=0.0, below=1.0, filled=True)
    names: tuple[str, ...] = option((), "texts")
    kind: Literal["one", "two", "three"] = option("one", "a choice")
    memory: str = option("2GiB", "bytes", size=True)
    on: bool = option(False, "a switch")


def test_what_fits_is_taken() -> None:
    Some()
    found = Some(
        count=1,
        part=1,
        rate=1e-9,
        norm=inf,
        ratios=(0.0, 0.99),
        names=("a",),
        kind="two",
        memory="1 kB",
        on=True,
    )
    assert (found.norm, found.kind) == (inf, "two")
    assert Some(ratios=[0.25]).ratios == (0.25,)  # type: ignore[arg-type]  # as JSON has it


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 0, "count=0 must be at least 1"),
        ("count", 1.0, "count=1.0 must be a whole number"),
        ("count", True, "count=True must be a whole number"),
        ("part", 1.5, "part=1.5 is outside [0, 1]"),
        ("part", nan, "part=nan is outside [0, 1]"),
        ("part", "half", "part='half' must be a number"),
        ("part", None, "part=None must be a number"),
        ("rate", 0.0, "rate=0.0 must be above 0"),
        ("rate", inf, "rate=inf must be finite"),
        ("norm", 0.5, "norm=0.5 must be at least 1"),
        ("norm", nan, "norm=nan must be finite"),
        ("ratios", (0.5, 1.0), "ratios=1.0 is outside [0, 1)"),
        ("ratios", (), "ratios is empty: give at least one"),
        ("ratios", 0.5, "ratios=0.5 must be a list, each a number"),
        ("names", "END", "names='END' must be a list, each a text"),
        ("kind", "four", "kind='four' must be one, two or three"),
        ("memory", "much", "'much' is no number of bytes: write 2GiB, 500MB or 1000000"),
        ("memory", "0", "memory=0 must be above 0"),
        ("on", 1, "on=1 must be true or false"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        Some(**{name: value})
    assert str(error.value) == expected


def outside(bounds: Bounds) -> list[float]:
    """Numbers just outside."""
    found = [bounds.least - 1] if bounds.least is not None else []
    found += [bounds.above] if bounds.above is not None else []
    found += [bounds.most + 1] if bounds.most is not None and bounds.most < inf else []
    return found + ([bounds.below] if bounds.below is not None else [])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_bound_of_every_option_holds(cls: type) -> None:
    assert issubclass(cls, Options)
    default, hints = cls(), type_hints(cls)
    for field in dataclasses.fields(cls):
        bounds, hint = field.metadata["bounds"], strip_none(hints[field.name])
        many = get_origin(hint) is tuple
        number = get_args(hint)[0] if many else hint
        for value in outside(bounds):
            given = number(value)
            with pytest.raises(cls.error, match=f"{field.name}="):
                dataclasses.replace(default, **{field.name: (given,) if many else given})
        with pytest.raises(cls.error, match=f"{field.name}="):
            dataclasses.replace(default, **{field.name: object()})


def test_a_wrong_budget_is_a_budget_error() -> None:
    for wrong in ({"compression_ratio": "0.8"}, {"max_entries": 0}, {"max_entries": 5, "max_bytes": 5}):
        with pytest.raises(BudgetError):
            Budget(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "cls", "name", "expected"),
    [
        (0.8, Budget, "budget", "budget must be a Budget, not 0.8: write Budget(compression_ratio=0.8)"),
        (
            {"temperature": 0.5},
            SamplingConfig,
            "sampling",
            "sampling must be a SamplingConfig, not a dict: write SamplingConfig(temperature=0.5)",
        ),
        (Budget(), SessionConfig, "config", "config must be a SessionConfig, not a Budget"),
        (None, Budget, "budget", "budget must be a Budget, not None"),
    ],
)
def test_an_argument_of_another_type_shows_how_one_is_written(
    value: Any, cls: type, name: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        expect(value, cls, name)
    assert str(error.value) == expected
    assert expect(Budget(max_entries=5), Budget, "budget") == Budget(max_entries=5)


def test_bytes_are_read_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("2GiB", "500 MB", "1.5kB", "7")] == [2 << 30, 500_000_000, 1500, 7]
