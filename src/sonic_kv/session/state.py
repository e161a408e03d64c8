"""Saved sessions: what their header says, under today's names."""

from collections.abc import Mapping
from typing import Any


def translated(header: Mapping[str, Any]) -> dict[str, Any]:
    """A saved session's header as it is written today: options had other names before."""
    config = dict(header["config"])
    found = {**header, "config": config}
    if "policy" not in header:
        window = config.pop("window")
        found["policy"] = (
            {"name": "recent", "window": window} if header["adapter"] is None else {"name": "learned"}
        )
    return found
