"""Options of compression: budgets, and how sessions keep segments."""

import dataclasses
from dataclasses import dataclass
from math import inf
from typing import Literal

from sonic_kv.errors import BudgetError
from sonic_kv.options import option, require

Positions = Literal["original", "compact"]
Allocation = Literal["pooled", "global", "segment"]
Storage = Literal["full", "int8", "int4"]
Closing = Literal["turn", "idle"]


@dataclass(frozen=True)
class Budget:
    """What limits the compressed cache: one of a ratio, a number of entries, a number of bytes.

    With none of them nothing is removed, and the cache is the base model's own.
    An entry is one key and one value in every layer and KV head.
    """

    compression_ratio: float | None = option(
        None, "fraction of the compressible history's entries that is removed (0.8 keeps one fifth)"
    )
    max_entries: int | None = option(
        None, "entries (prefix and memory) the cache may hold once a segment is closed"
    )
    max_bytes: int | None = option(
        None, "bytes (prefix and memory) the cache may hold once a segment is closed"
    )

    def __post_init__(self) -> None:
        given = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]
        if len(given) > 1:
            raise BudgetError(f"a budget is one of {' or '.join(given)}, not both: leave one out")
        ratio = self.compression_ratio
        if ratio is not None and not (isinstance(ratio, (int, float)) and 0.0 <= ratio < 1.0):
            raise BudgetError(
                f"compression_ratio={ratio!r} is outside [0, 1): 0.8 keeps one fifth of the history"
            )
        for name in ("max_entries", "max_bytes"):
            limit = getattr(self, name)
            if limit is not None and not (type(limit) is int and limit >= 1):
                raise BudgetError(f"{name}={limit!r} must be a whole number, at least 1")


DEFAULT_BUDGET = Budget(compression_ratio=0.8)


@dataclass(frozen=True)
class SessionConfig:
    """How a session cuts its dialogue into segments and what it keeps of each."""

    min_segment_tokens: int = option(32, "exchanges are grouped until a segment has this many tokens")
    max_segment_tokens: int = option(
        512, "with a budget, a longer exchange is split into segments of this many"
    )
    positions: Positions = option(
        "original", "key positions of kept entries: the transcript's (original) or consecutive (compact)"
    )
    allocation: Allocation = option(
        "pooled",
        "all layers and heads share one total (pooled; with compact positions or learned Nexus tokens: global), or "
        "each has as many entries, chosen over the whole history (global) or over each segment's share (segment)",
    )
    reencode: bool = option(
        True, "re-encode kept entries with the adapter; off: plain selection, no extra forward"
    )
    candidates: float = option(
        1.0, "tokens re-encoded per entry that a head keeps of a segment, on average; the others stay raw"
    )
    window: int = option(16, "recent queries observed for importance when there is no adapter")
    storage: Storage = option(
        "full", "numbers of kept entries between two calls: as computed (full), or rounded to 8 or 4 bits"
    )
    closing: Closing = option(
        "turn", "close a segment when its exchange ends (turn), or when close_pending() is called (idle)"
    )

    def __post_init__(self) -> None:
        require(
            self.min_segment_tokens >= 1, f"min_segment_tokens={self.min_segment_tokens} must be at least 1"
        )
        require(
            self.max_segment_tokens >= self.min_segment_tokens,
            f"max_segment_tokens={self.max_segment_tokens} is below min_segment_tokens={self.min_segment_tokens}",
        )
        require(1.0 <= self.candidates < inf, f"candidates={self.candidates} must be at least 1, and finite")
        require(self.window >= 1, f"window={self.window} must be at least 1")
        require(
            self.positions in ("original", "compact"), f"positions={self.positions!r}: original or compact"
        )
        require(
            self.allocation in ("pooled", "global", "segment"),
            f"allocation={self.allocation!r}: pooled, global or segment",
        )
        require(self.storage in ("full", "int8", "int4"), f"storage={self.storage!r}: full, int8 or int4")
        require(
            self.storage == "full" or self.positions == "original",
            f"storage={self.storage!r} needs positions='original': compact ones round every entry again and again",
        )
        require(self.closing in ("turn", "idle"), f"closing={self.closing!r}: turn or idle")

    @property
    def bits(self) -> int | None:
        """Bits of a stored number; None: as computed."""
        return {"int8": 8, "int4": 4}.get(self.storage)
