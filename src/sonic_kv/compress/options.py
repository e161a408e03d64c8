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
        "share of the past that is removed: 0.8 keeps one fifth",
        least=0.0,
        below=1.0,
    )
    max_entries: int | None = option(
        None,
        "most entries in the cache after a segment is closed, the system prompt included",
        least=1,
    )
    max_bytes: int | None = option(
        None, "most bytes in the cache after a segment is closed, the system prompt included", least=1
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
        "who shares the budget: all layers and heads (shared), each head has the same number of entries (per_head), or "
        "each segment has a share (segment); with compact positions or learned Nexus tokens shared means per_head",
    )
    reencode: bool = option(
        True, "let the adapter re-encode kept entries; off: they stay as they are", flag=False
    )
    refit: bool | None = option(
        None,
        "change the values of kept entries so that they answer for dropped ones too: better, but some of the segment "
        "is read once more for it; without it: where the policy reads the segment again anyway (reread). Never where "
        "entries are re-encoded",
        flag=False,
    )
    candidates: float = option(
        1.0,
        "re-encoded tokens for each entry that a head keeps of a segment, on average; others stay as they are",
        least=1.0,
        flag=False,
    )
    policy: PolicyName | None = option(
        None,
        "which entries stay: those that the adapter's scorer chooses (learned), that the model looks at while it "
        "repeats the segment (reread), that its last queries (recent) or all of its queries (h2o) look at, or the "
        "first and newest ones (streaming); without it: learned, or reread if there is no adapter",
    )
    bits: Bits | None = option(
        None, "store kept entries in 8 or 4 bits between two turns; without it: as the model computes them"
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
