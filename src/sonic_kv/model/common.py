"""What two sequences have in common."""

from collections.abc import Sequence
from typing import Any


def common(a: str, b: str) -> str:
    """What both texts begin with."""
    return a[: same(a, b)]


def same(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items from the start are the same in both."""
    if a[: len(b)] == b[: len(a)]:
        return min(len(a), len(b))
    return next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def common_suffix(a: str, b: str, tokens: Sequence[str]) -> str:
    """The longest common suffix that does not begin inside one of `tokens`, as `a` spells them."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    start = len(a) - n
    for token in tokens:
        at = a.rfind(token, 0, start + len(token) - 1)
        if at >= 0 and at < start < at + len(token):
            start = at + len(token)
    return a[start:]
