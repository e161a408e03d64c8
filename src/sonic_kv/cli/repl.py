"""The loop of `sonic-kv chat`: reads user messages and commands, prints replies."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TextIO

from sonic_kv.compress.options import Budget
from sonic_kv.errors import ConfigError, SonicError
from sonic_kv.model.model import SonicModel
from sonic_kv.session.session import ChatSession, SessionStats
from sonic_kv.text import bytes_text, nearest, percent_text, table

HELP = """\
/budget 0.9   compression ratio from now on (also: /budget max_entries=512, /budget max_bytes=1000000)
/stats        what each segment was and what is left of it
/save FILE    write the session
/load FILE    go on with a saved session
/quit         end"""


def status_line(stats: SessionStats, seconds: float) -> str:
    """Entries kept, bytes saved and time, in one line."""
    saved = stats.full_bytes - stats.bytes
    # before the first closing a cache is larger than its entries: it has room to grow
    found = (
        f"{bytes_text(saved)} saved ({percent_text(saved / stats.full_bytes)})"
        if saved > 0
        else "nothing saved yet"
    )
    return f"{stats.entries} of {stats.logical_tokens} entries kept · {found} · {1000 * seconds:.0f} ms"


def parse_budget(text: str) -> Budget:
    """`0.9` is a compression ratio; `max_entries=512` and `max_bytes=100000` are limits.

    Raises:
        ConfigError: it is neither.
    """
    name, _, value = text.rpartition("=")
    try:
        if not name:
            return Budget(compression_ratio=float(value))
        if name in ("max_entries", "max_bytes"):
            return Budget(**{name: int(value)})
        if name == "compression_ratio":
            return Budget(compression_ratio=float(value))
    except ValueError:
        pass
    raise ConfigError(f"/budget {text}: give a ratio such as 0.9, max_entries=512 or max_bytes=1000000")


class Repl:
    """Reads user messages and `/` commands, prints replies, and the state of the cache on stderr.

    Args:
        model: what a loaded session runs on.
        chat: the session to begin with.
        as_json: print one JSON object per reply instead of its text as it comes.
        source: where lines are read; a terminal gets prompts, and errors do not end it.
    """

    def __init__(self, model: SonicModel, chat: ChatSession, *, as_json: bool, source: TextIO) -> None:
        self.model, self.chat, self.as_json, self.source = model, chat, as_json, source
        self.interactive = source.isatty()
        self.commands: dict[str, Callable[[str], None]] = {
            "budget": self._budget,
            "help": lambda _: self.note(HELP),
            "load": self._load,
            "save": self._save,
            "stats": self._stats,
        }

    def run(self) -> None:
        """Until the input ends or `/quit`.

        Raises:
            SonicError: a message failed and the input is no terminal.
        """
        if self.interactive:
            self.note("Type a message, or /help.")
        for line in self._lines():
            if line == "/quit":
                return
            try:
                self.handle(line)
                self.chat.close_pending()  # while the user reads and types
            except SonicError as error:
                if not self.interactive:
                    raise
                self.note(f"error: {error}")

    def _lines(self) -> Iterator[str]:
        if not self.interactive:
            yield from filter(None, map(str.strip, self.source))
            return
        with suppress(ImportError):  # not on every platform
            import readline  # noqa: F401 (line editing and history for `input`)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                self.note("")  # leave the prompt's line
                return
            if line:
                yield line

    def handle(self, line: str) -> None:
        """Carry out one line: a command if it starts with `/`, else a user message."""
        if not line.startswith("/"):
            self.reply(line)
            return
        name, _, argument = line[1:].partition(" ")
        if name not in self.commands:
            raise ConfigError(
                f"unknown command /{name}{nearest(name, [*self.commands, 'quit'])} (/help lists them)"
            )
        self.commands[name](argument.strip())

    def reply(self, text: str) -> None:
        """Answer one user message."""
        for piece in self.chat.stream(text):
            if not self.as_json:
                print(piece, end="", flush=True)
        reply, stats = self.chat.last_reply, self.chat.stats
        assert reply is not None
        if self.as_json:
            record = {**asdict(reply), "stats": asdict(stats)}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print(flush=True)
        self.note(status_line(stats, reply.usage.seconds))

    def note(self, text: str) -> None:
        """Something about the dialogue that is not part of it."""
        dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
        print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)

    def _budget(self, argument: str) -> None:
        self.chat.set_budget(parse_budget(argument))
        stats = self.chat.stats
        self.note(f"{stats.entries} of {stats.logical_tokens} entries kept · {bytes_text(stats.bytes)}")

    def _save(self, argument: str) -> None:
        if not argument:
            raise ConfigError("/save needs a file name")
        self.chat.save(argument)
        self.note(f"saved to {argument}")

    def _load(self, argument: str) -> None:
        if not argument:
            raise ConfigError("/load needs a file name")
        self.chat = ChatSession.load(self.model, argument)
        self.note(f"{len(self.chat.messages)} messages loaded from {argument}")

    def _stats(self, _argument: str) -> None:
        stats = self.chat.stats
        rows = [
            [str(number), str(segment.tokens), f"{segment.entries:.1f}"]
            for number, segment in enumerate(stats.segments, start=1)
        ]
        if rows:
            self.note(table(["segment", "tokens", "entries"], rows))
        self.note(
            f"{stats.entries} of {stats.logical_tokens} entries kept · {bytes_text(stats.bytes)} "
            f"instead of {bytes_text(stats.full_bytes)}"
        )
