"""Options: frozen dataclasses whose fields carry their help text; every default is written once.

Each folder keeps its own options beside what they configure, in modules without heavy imports: the command line
builds its flags from them without loading torch.
"""

import dataclasses
import re
from typing import Any

from sonic_kv.errors import ConfigError


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


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
