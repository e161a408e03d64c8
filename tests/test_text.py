"""Texts for people: sizes, durations, tables, progress."""

import io

import pytest

from sonic_kv import text
from sonic_kv.text import Progress, duration, reason


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(text, "time", found)
    return found


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 89, 720, 8040)] == ["0 s", "89 s", "12 min", "2 h 14 min"]


def test_an_error_is_its_first_line_with_what_a_colon_promises() -> None:
    assert reason(ValueError("no\n  more")) == "no"
    assert reason(ValueError("one of: \n(1) a,\n(2) b")) == "one of: (1) a, (2) b"
    assert reason(FileNotFoundError(2, "No such file", "x")) == "No such file"
    assert reason(ValueError()) == "ValueError"


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("step", 100) as progress:
        for _ in range(100):
            clock.now += 1.0
            progress.add(note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "sonic-kv: 30 of 100 steps, 30 s, 70 s left; loss 0.5",
        "sonic-kv: 60 of 100 steps, 60 s, 40 s left; loss 0.5",
        "sonic-kv: 90 of 100 steps, 2 min, 10 s left; loss 0.5",
        "sonic-kv: 100 of 100 steps, 2 min; loss 0.5",
    ]


def test_a_run_that_goes_on_takes_its_own_pace(clock: Clock) -> None:
    progress = Progress("step", 100, done=50)
    assert str(progress) == "50 of 100 steps, 0 s"
    clock.now += 10.0
    progress.add(10)
    assert str(progress) == "60 of 100 steps, 10 s, 40 s left"
    progress.add(1, left=300.0)  # known better
    assert str(progress) == "61 of 100 steps, 10 s, 5 min left"
    assert str(Progress("dialogue", None)) == "0 dialogues, 0 s"


def test_a_terminal_has_one_line_that_is_written_anew(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(text.sys, "stderr", Terminal())
    with Progress("step", 3) as progress:
        for _ in range(3):
            clock.now += 1.0
            progress.add()
    written = text.sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert written.count("\n") == 1
    assert written.endswith("3 of 3 steps, 3 s\n")


def test_nothing_done_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("step", 3):
        pass
    with Progress("step", 3, quiet=True) as progress:
        progress.add(3)
    assert capsys.readouterr().err == ""
