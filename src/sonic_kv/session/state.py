"""Saved sessions: what their header says, under today's names."""

from collections.abc import Mapping
from typing import Any

_OLD_VALUES: dict[str, dict[str, Any]] = {
    "allocation": {"pooled": "shared", "global": "per_head"},
    "storage": {"full": None, "int8": 8, "int4": 4},
    "closing": {"idle": "asked"},
}


def translated(header: Mapping[str, Any]) -> dict[str, Any]:
    """A saved session's header as it is written today: options had other names before."""
    config = {name: _OLD_VALUES.get(name, {}).get(value, value) for name, value in header["config"].items()}
    if "storage" in config:
        config["bits"] = config.pop("storage")
    found = {**header, "config": config}
    if "policy" not in header:
        window = config.pop("window")
        found["policy"] = (
            {"name": "recent", "window": window} if header["adapter"] is None else {"name": "learned"}
        )
    return found
