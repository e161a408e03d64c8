"""How far a run is, and how long the rest takes: from tokens that are left and seconds that they took so far."""

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sonic_kv.files import write_atomic
from sonic_kv.text import duration


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    suite: str
    records: int
    total_records: int
    seconds: float  # of this process so far
    seconds_left: float | None  # None: nothing has been measured yet

    def as_text(self) -> str:
        """In one line: `mt-bench-101: 96 of 6912 records, 1 h 05 min, 2 h 14 min left`."""
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        return f"{self.suite}: {self.records} of {self.total_records} records, {duration(self.seconds)}{left}"


class RunProgress:
    """Counts what is done; each suite's tokens take as long as they took so far, others' as long as all do.

    Args:
        path: a JSON file that always says how far the run is.
        tokens: of each suite, tokens of all rows that are still to be read.
        records: that were there when the run began, and that there will be.
    """

    def __init__(self, path: Path, tokens: Mapping[str, int], records: int, total: int) -> None:
        self._path, self._left, self._begun = path, dict(tokens), time.monotonic()
        self._read: dict[str, int] = defaultdict(int)
        self._seconds: dict[str, float] = defaultdict(float)
        self._records, self._total, self._before = records, total, self._begun

    def add(self, suite: str, tokens: int, records: int) -> Standing:
        """A portion is done, which took the time since the one before."""
        now = time.monotonic()
        self._left[suite] -= tokens
        self._read[suite] += tokens
        self._seconds[suite] += now - self._before
        self._before, self._records = now, self._records + records
        found = Standing(suite, self._records, self._total, now - self._begun, self.seconds_left())
        write_atomic(self._path, json.dumps(asdict(found)).encode() + b"\n")
        return found

    def seconds_left(self) -> float | None:
        """Seconds that the rest takes; None: nothing has been measured."""
        read = sum(self._read.values())
        if not read:
            return None
        mean = sum(self._seconds.values()) / read
        return sum(
            left * (self._seconds[suite] / self._read[suite] if self._read[suite] else mean)
            for suite, left in self._left.items()
        )
