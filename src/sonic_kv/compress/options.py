"""Options of compression: budgets, and how sessions keep segments."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sonic_kv.errors import BudgetError
from sonic_kv.options import Options, option, require

Positions = Literal["original", "compact"]
Allocation = Literal["shared", "per_head", "segment"]
Bits = Literal[4, 8]
When = Literal["turn", "asked"]
PolicyName = Literal["learned", "reread", "recent", "h2o", "streaming"]


@dataclass(frozen=True)
class Budget(Options):
    """What limits the compressed cache: a ratio, a number of entries or of bytes, or what its losses may cost.

    With none of them nothing is removed, and the cache is the base model's own.
    An entry is one key and one value in every layer and KV head.
    """

    error = BudgetError

    compression_ratio: float | None = option(
        None,
        "share of the history's entries that is removed (0.8 keeps one fifth)",
        least=0.0,
        below=1.0,
    )
    max_entries: int | None = option(
        None,
        "most entries in the cache after a segment has been closed, the system prompt's included",
        least=1,
    )
    max_bytes: int | None = option(
        None, "most bytes in the cache after a segment has been closed, the system prompt's included", least=1
    )
    max_damage: float | None = option(
        None,
        "most that what is removed may cost, as the adapter predicts it: KL divergence from full context, in nats a "
        "later token (0.02 is little, 0.2 is much)",
        above=0.0,
    )

    def check(self) -> None:
        given = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]
        if len(given) > 1:
            raise BudgetError(f"a budget is one of {' or '.join(given)}, not both: leave one out")


DEFAULT_BUDGET = Budget(compression_ratio=0.8)
SAFE_BUDGET = Budget(compression_ratio=0.5)  # without an adapter


def default_budget(adapter: object | None) -> Budget:
    """What a session has of which nothing else is said: without an adapter less is removed."""
    return SAFE_BUDGET if adapter is None else DEFAULT_BUDGET


@dataclass(frozen=True)
class SessionConfig(Options):
    """How a session cuts its dialogue into segments and what it keeps of each."""

    min_segment_tokens: int = option(
        32, "exchanges are grouped until a segment has this many tokens", least=1
    )
    max_segment_tokens: int = option(
        512, "with a budget, a longer exchange is split into segments of this many", least=1, flag=False
    )
    positions: Positions = option(
        "original",
        "key positions of kept entries: the transcript's (original) or consecutive (compact)",
        flag=False,
    )
    allocation: Allocation = option(
        "shared",
        "all layers and heads share one total (shared; with compact positions or learned Nexus tokens: per_head), or "
        "each has as many entries, chosen over the whole history (per_head) or over each segment's share (segment)",
    )
    reencode: bool = option(
        True, "re-encode kept entries with the adapter; off: plain selection, no extra forward", flag=False
    )
    candidates: float = option(
        1.0,
        "tokens re-encoded per entry that a head keeps of a segment, on average; the others stay raw",
        least=1.0,
        flag=False,
    )
    policy: PolicyName | None = option(
        None,
        "how entries are chosen: by the adapter's scorer (learned), by what is looked at when the segment is repeated "
        "(reread), by what recent queries (recent) or all of the segment's (h2o) look at, the first and newest ones "
        "(streaming); without it: learned, or without an adapter reread",
    )
    bits: Bits | None = option(
        None, "bits of a number in kept entries between two calls: 8 or 4; without it: as the model computes"
    )
    closing: When = option(
        "turn",
        "close a segment when its exchange ends (turn), or when compress() is called (asked)",
        flag=False,
    )

    def check(self) -> None:
        require(
            self.max_segment_tokens >= self.min_segment_tokens,
            f"max_segment_tokens={self.max_segment_tokens} is below min_segment_tokens={self.min_segment_tokens}",
        )
        require(
            self.bits is None or self.positions == "original",
            f"bits={self.bits} needs positions='original': compact ones round every entry again and again",
        )
