"""The loop of `sonic-kv chat`: reads user messages and commands, prints replies."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from typing import TextIO

from sonic_kv.compress.options import Budget
from sonic_kv.errors import ConfigError, SonicError
from sonic_kv.model.model import SonicModel
from sonic_kv.session.session import ChatSession, Reply
from sonic_kv.session.stats import SessionStats
from sonic_kv.text import bytes_text, nearest, table

HELP = """\
/budget 0.9   compression ratio from now on (also: /budget max_damage=0.02, max_entries=512, max_bytes=1000000)
/stats        what each segment was and what is left of it
/save FILE    write the session
/load FILE    go on with a saved session
/quit         end"""


def cache_line(stats: SessionStats) -> str:
    """What the cache holds, in words."""
    if stats.bytes >= stats.full_bytes:  # before the first closing it has room to grow, too
        return f"The cache holds all {stats.logical_tokens} tokens; nothing has been compressed yet."
    cost = (
        ""
        if stats.predicted_damage is None
        else f" Predicted damage: {stats.predicted_damage:.2g} nats a token."
    )
    return (
        f"The cache holds {stats.entries} of {stats.logical_tokens} tokens: {bytes_text(stats.bytes)} instead of "
        f"{bytes_text(stats.full_bytes)}.{cost}"
    )


def reply_line(reply: Reply) -> str:
    """What the reply took, and whether its limit cut it, in words."""
    usage = reply.usage
    rate = f" ({usage.completion_tokens / usage.seconds:.0f} a second)" if usage.seconds else ""
    cut = (
        " It was cut by its limit: --max-new-tokens sets another." if reply.finish_reason == "length" else ""
    )
    return f"Reply: {usage.completion_tokens} tokens in {usage.seconds:.1f} s{rate}.{cut}"


def parse_budget(text: str) -> Budget:
    """`0.9` is a compression ratio; `max_damage=0.02`, `max_entries=512` and `max_bytes=100000` are limits.

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
        if name == "max_damage":
            return Budget(max_damage=float(value))
    except ValueError:
        pass
    raise ConfigError(
        f"/budget {text}: give a ratio such as 0.9, max_damage=0.02, max_entries=512 or max_bytes=1000000"
    )


class Repl:
    """Reads user messages and `/` commands, prints replies, and the state of the cache on stderr.

    Args:
        model: what a loaded session runs on.
        chat: the session to begin with.
        as_json: print one JSON object per reply instead of its text as it comes.
        source: where lines are read. A terminal gets prompts, and neither errors nor Ctrl-C end it; elsewhere a line
            that begins with `/` and is no command is a message.
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
                self.chat.compress()  # while the user reads and types
            except SonicError as error:
                if not self.interactive:
                    raise
                self.note(f"error: {error}")
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.note("\nstopped")

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
            except KeyboardInterrupt:
                self.note("\n/quit ends the chat")
                continue
            if line:
                yield line

    def handle(self, line: str) -> None:
        """Carry out one line: a command if it starts with `/`, else a user message."""
        name, _, argument = line[1:].partition(" ")
        if not line.startswith("/") or (name not in self.commands and not self.interactive):
            self.reply(line)
            return
        if name not in self.commands:
            raise ConfigError(
                f"unknown command /{name}{nearest(name, [*self.commands, 'quit'])} (/help lists them)"
            )
        self.commands[name](argument.strip())

    def reply(self, text: str) -> None:
        """Answer one user message. At a terminal Ctrl-C stops the reply, and what was written of it stays."""
        written, pieces = "", self.chat.stream(text)
        try:
            with closing(pieces):
                for piece in pieces:
                    written += piece
                    if not self.as_json:
                        print(piece, end="", flush=True)
        except KeyboardInterrupt:  # the session is as it was before the message
            if written and self.interactive:
                said = [{"role": "user", "content": text}, {"role": "assistant", "content": written}]
                self.chat.extend(said)
            raise
        reply, stats = self.chat.last_reply, self.chat.stats
        assert reply is not None
        if self.as_json:
            record = {**asdict(reply), "stats": asdict(stats)}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print(flush=True)
        self.note(f"{reply_line(reply)} {cache_line(stats)}")

    def note(self, text: str) -> None:
        """Something about the dialogue that is not part of it."""
        dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
        print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)

    def _budget(self, argument: str) -> None:
        self.chat.set_budget(parse_budget(argument))
        self.note(cache_line(self.chat.stats))

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
        self.note(cache_line(stats))
