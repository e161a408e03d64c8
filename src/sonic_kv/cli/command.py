"""A command of the command line, and one call of it: plain data, free of heavy imports."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sonic_kv.cli.flags import Given, build
from sonic_kv.compress.options import Budget

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One command as it was called.

    Attributes:
        sources: the options of the TOML file, then those of the flags.
        json: print JSON.
        targets: the positional arguments.
    """

    sections: Mapping[str, type]
    sources: tuple[Given, ...]
    json: bool
    targets: tuple[str, ...]

    @property
    def target(self) -> str | None:
        """The positional argument of a command that takes one."""
        return self.targets[0] if self.targets else None

    def options(self, cls: type[T], base: T | None = None) -> T:
        """The options of one section of this command, over those of `base` if given."""
        section = self._section(cls)
        sources = self.sources if base is None else ({section: vars(base)}, *self.sources)
        return build(cls, section, *sources, exclusive=cls is Budget)

    def given(self, cls: type) -> dict[str, Any]:
        """The options of one section that were given at all, by field name."""
        section = self._section(cls)
        return {name: value for source in self.sources for name, value in source.get(section, {}).items()}

    def _section(self, cls: type) -> str:
        return next(name for name, section in self.sections.items() if section is cls)


@dataclass(frozen=True)
class Command:
    """A subcommand. A name of two words is a group and its member.

    Attributes:
        sections: its options, by the name that stands in a TOML file.
        file_only: sections without flags.
        target: help of an optional positional argument.
        many: the command takes one or more of them.
        json: what `--json` prints; None: there is no such flag.
    """

    name: str
    help: str
    run: Callable[[Call], None]
    sections: Mapping[str, type]
    file_only: tuple[str, ...] = ()
    target: str | None = None
    many: bool = False
    json: str | None = None


def note(text: str) -> None:
    """A line about the work, on standard error."""
    print(f"sonic-kv: {text}", file=sys.stderr, flush=True)
