"""Figures, tables, names and the progress of work as people read them."""

import difflib
import shutil
import sys
import time
from collections.abc import Iterable, Sequence


def bytes_text(number: float) -> str:
    """A number of bytes with three significant digits: `1.23 MB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def percent_text(share: float) -> str:
    """A share of 1 as a whole percentage."""
    return f"{100 * share:.0f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table: the first column to the left, the others to the right."""
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        for row in (head, rule, *rows)
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for the known name closest to `name`, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def reason(error: Exception) -> str:
    """What an error says, its first line, or more if that ends with a colon; of the operating system's without number
    and path."""
    said = str(getattr(error, "strerror", None) or error).strip()
    first = (said.splitlines() or [type(error).__name__])[0].strip()
    return " ".join(said.split()) if first.endswith(":") else first


def duration(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `2 h 14 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """How far a piece of work is and how long the rest takes, on standard error: use it in a `with` statement.

    A terminal has one line that is written anew; elsewhere a line comes now and then, and one at the end.

    Args:
        unit: what is counted, as "dialogue".
        total: how many there are; None: nobody knows.
        done: how many were done before.
        every: seconds between two lines where standard error is no terminal.
        quiet: say nothing.
    """

    def __init__(
        self, unit: str, total: int | None, *, done: int = 0, every: float = 30.0, quiet: bool = False
    ) -> None:
        self.done, self._unit, self._total, self._before = done, unit, total, done
        self._terminal, self._quiet = sys.stderr.isatty(), quiet
        self._every = 0.1 if self._terminal else every
        self._begun = self._said = time.monotonic()
        self._note = ""
        self._left: float | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.done > self._before:
            self._say("\n")

    def add(self, units: int = 1, note: str = "", left: float | None = None) -> None:
        """Some units are done.

        Args:
            note: figures to show beside.
            left: seconds that the rest takes, if that is known better than from the mean so far.
        """
        self.done, self._note, self._left = self.done + units, note or self._note, left
        if time.monotonic() - self._said >= self._every:
            self._say("" if self._terminal else "\n")

    def _seconds_left(self, spent: float) -> float | None:
        if self._left is not None or self._total is None or self.done <= self._before:
            return self._left
        return spent * (self._total - self.done) / (self.done - self._before)

    def __str__(self) -> str:
        spent = time.monotonic() - self._begun
        left = self._seconds_left(spent)
        total = "" if self._total is None else f" of {self._total}"
        found = f"{self.done}{total} {self._unit}s, {duration(spent)}"
        found += f", {duration(left)} left" if left else ""
        return found + (f"; {self._note}" if self._note else "")

    def _say(self, end: str) -> None:
        self._said = time.monotonic()
        if not self._quiet:
            width = shutil.get_terminal_size().columns - 1
            text = f"\r\033[K{str(self)[:width]}" if self._terminal else f"sonic-kv: {self}"
            print(text, end=end, file=sys.stderr, flush=True)
