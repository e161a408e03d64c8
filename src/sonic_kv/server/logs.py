"""The server's log: lines with times and the request they belong to, as text or JSON."""

import json
import logging
import sys
import time
from contextvars import ContextVar

QUIET_SECONDS = 60.0  # in which a warning that says the same is not written again
MOST = 1000  # warnings that are remembered
request_id: ContextVar[str] = ContextVar("request_id", default="-")


class Seldom(logging.Filter):
    """Lets a warning or error through once a minute, and says then how often it was meant."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str, str], list[float]] = {}  # when it was written, how often not since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno < logging.WARNING:
            return True
        raised = record.exc_info[1] if record.exc_info else None
        what = (record.name, str(record.msg), "" if raised is None else f"{type(raised).__name__}: {raised}")
        if len(self._seen) > MOST:
            self._seen.clear()
        seen = self._seen.setdefault(what, [-QUIET_SECONDS, 0])
        if time.monotonic() - seen[0] < QUIET_SECONDS:
            seen[1] += 1
            return False
        if seen[1]:
            record.msg, record.args = f"{record.getMessage()} (and {seen[1]:.0f} times before)", ()
        seen[:] = [time.monotonic(), 0]
        return True


class Request(logging.Filter):
    """Puts the id of the request under way into every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written: always."""
        record.request = request_id.get()
        return True


class AsText(logging.Formatter):
    """One line of text a record, a traceback behind it."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request)s] %(message)s")


class AsJson(AsText):
    """One JSON object a record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "request": getattr(record, "request", "-"),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(level: str, form: str) -> None:
    """Write the log to standard error.

    Args:
        level: the least that is written: debug, info, warning or error.
        form: text or json.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(AsJson() if form == "json" else AsText())
    handler.addFilter(Request())
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sonic_kv").setLevel(level.upper())
