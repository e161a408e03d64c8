"""How long a run will still take, over all of its phases."""

from collections.abc import Mapping
from statistics import median

RECENT = 50  # times of a kind that count
# Times of what has not been done yet, in those of one forward and one backward of the base.
EXPECTED = {"reading": 1.0, "scorer": 0.2, "student": 1.7, "both": 2.7, "validation": 1.5, "scale": 1.5}


class Pace:
    """Times of the kinds of work that a run consists of."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def note(self, kind: str, seconds: float, count: int = 1) -> None:
        """`count` pieces of work of a kind took so many seconds together."""
        self._times.setdefault(kind, []).append(seconds / count)

    def seconds(self, kind: str) -> float | None:
        """What a piece of work of a kind takes; of one that has not been done, what is to be expected."""
        if kind in self._times:
            return median(self._times[kind][-RECENT:])
        known = [self.seconds(other) for other in self._times]
        units = [t / EXPECTED[other] for t, other in zip(known, self._times, strict=True) if t is not None]
        return EXPECTED[kind] * median(units) if units else None

    def remaining(self, work: Mapping[str, int]) -> float | None:
        """Seconds that so many pieces of work of each kind will take; None: nothing has been done yet."""
        each = {kind: self.seconds(kind) for kind, count in work.items() if count}
        if any(seconds is None for seconds in each.values()):
            return None
        return sum(work[kind] * seconds for kind, seconds in each.items() if seconds is not None)
