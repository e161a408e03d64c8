"""What the clients of a soak said and were answered, compared with a fresh run, and the report of it."""

import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sonic_kv import __version__
from sonic_kv.bench.options import BenchSoakOptions
from sonic_kv.bench.report import Report
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.model.model import SonicModel
from sonic_kv.options import parse_bytes
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession
from sonic_kv.session.work import run
from sonic_kv.text import Progress, bytes_text, percent_text, table

TIE = 1e-3  # logits as close as this may change places when other rows are computed beside them
GROWTH = 0.05  # of resident memory after the warm-up
WARM_UP = 0.2  # of the time
SHOWN = 5  # wrong replies that the report names


@dataclass(eq=False)
class Said:
    """An exchange that was acknowledged, and what it followed; the root of a dialogue has no text."""

    before: "Said | None" = None
    user: str = ""
    reply: str = ""
    finish_reason: str = ""
    after: list["Said"] = field(default_factory=list)

    def path(self) -> list["Said"]:
        """The exchanges from the first to this one."""
        found: list[Said] = []
        node: Said | None = self
        while node is not None and node.before is not None:
            found.append(node)
            node = node.before
        return found[::-1]


@dataclass(eq=False)
class Dialogue:
    """A dialogue as its client knows it: where it stands, and everything that was ever said in it."""

    system: str | None
    ratio: float
    name: str | None
    texts: Iterator[str]
    root: Said = field(default_factory=Said)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.at = self.root

    def messages(self, text: str) -> list[dict[str, str]]:
        """What the client sends: all of it, and `text`."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for said in self.at.path():
            found.append({"role": "user", "content": said.user})
            found.append({"role": "assistant", "content": said.reply})
        return [*found, {"role": "user", "content": text}]


@dataclass
class Result:
    """What happened. Sizes in bytes, times in seconds."""

    model: str
    options: BenchSoakOptions
    replies: int = 0
    answers: Counter[str] = field(default_factory=Counter)  # by status, or by what went wrong
    actions: Counter[str] = field(default_factory=Counter)
    sessions: dict[str, float] = field(default_factory=dict)  # what the server says became of them
    seconds: list[float] = field(default_factory=list)  # of every reply
    resident: list[tuple[float, int]] = field(default_factory=list)  # when, and how much
    kv_peak: int = 0
    named: int = 0  # dialogues that the server knows by name
    lost: int = 0  # those of them that it does not have whole
    checked: int = 0
    ties: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)
    log: str = ""  # what the server had to say
    version: str = __version__

    @property
    def growth(self) -> float:
        """Resident memory in the last fifth of the time, over that in the fifth after the warm-up, less 1."""
        end = self.resident[-1][0] if self.resident else 0.0
        early, late = (
            [size for at, size in self.resident if low * end <= at <= high * end]
            for low, high in ((WARM_UP, 2 * WARM_UP), (1.0 - WARM_UP, 1.0))
        )
        return statistics.median(late) / statistics.median(early) - 1.0 if early and late else 0.0

    def failures(self) -> list[str]:
        """Promises that were not kept."""
        bad = {what: n for what, n in self.answers.items() if what not in ("200", "429", "503")}
        limit = parse_bytes(self.options.kv_memory)
        found = [f"{len(self.wrong)} wrong replies"] if self.wrong else []
        found += [f"{self.lost} dialogues lost"] if self.lost else []
        found += [f"{n} answers {what}" for what, n in sorted(bad.items())]
        if self.growth > GROWTH:
            found.append(f"resident memory grew by {percent_text(self.growth)}")
        if self.kv_peak > limit:
            found.append(
                f"{bytes_text(self.kv_peak)} of keys and values where {bytes_text(limit)} are allowed"
            )
        if not self.replies:
            found.append("no reply at all")
        return found


def compare(model: SonicModel, result: Result, dialogues: Sequence[Dialogue]) -> None:
    """Every reply of the dialogues that are drawn, with the reply of a session for these messages alone."""
    draw = random.Random(result.options.seed)
    drawn = [dialogue for dialogue in dialogues if draw.random() < result.options.checked]
    bar = Progress("compared dialogue", len(drawn))
    for dialogue in drawn:
        session = ChatSession(
            model, Budget(compression_ratio=dialogue.ratio), dialogue.system, SessionConfig()
        )
        left = [(session, said) for said in dialogue.root.after]
        while left:
            before, said = left.pop()
            session = before.fork()
            _check(session, said, result)
            session.extend([{"role": "assistant", "content": said.reply}])
            left += [(session, after) for after in said.after]
        bar.add()


def _check(session: ChatSession, said: Said, result: Result) -> None:
    """Say what the user said, and compare the reply."""
    session.extend([{"role": "user", "content": said.user}])
    result.checked += 1
    gap = _gap(session, said)
    if gap is None or gap > TIE:
        sampling = SamplingConfig(max_new_tokens=result.options.reply_tokens, temperature=0.0)
        expected = session.fork().send(None, sampling)
        if (expected.text, expected.finish_reason) != (said.reply, said.finish_reason):
            result.wrong.append(
                {"user": said.user, "reply": said.reply, "expected": expected.text, "gap": str(gap)}
            )
    elif gap > 0.0:
        result.ties += 1


def _gap(session: ChatSession, said: Said) -> float | None:
    """How far the logits of the reply's tokens are from the largest at their place, at most: 0 for a greedy reply.

    One run in place of one a token; None where it does not say: the reply would close a segment.
    """
    model = session.model
    draft = session.dialogue.copy()
    token = run(model, draft.begin_draft())
    ids = model.tokenizer(said.reply, add_special_tokens=False)["input_ids"]
    if draft.cache.open_length + len(ids) + 1 >= draft.config.max_segment_tokens:
        return None
    logits = model.feed(draft.cache, [token, *ids], all_logits=True)  # (1 + n, V)
    best = logits.max(-1).values.tolist()
    chosen = [float(row[i]) for row, i in zip(logits, ids, strict=False)]
    if said.finish_reason == "stop":
        chosen.append(max(float(logits[-1, i]) for i in model.stop_ids))
    return max((b - c for b, c in zip(best, chosen, strict=False)), default=0.0)


def report(result: Result) -> Report:
    """What happened, as a Markdown page."""
    options, seconds = result.options, sorted(result.seconds)
    end = result.resident[-1][1] if result.resident else 0

    def counts(found: dict[str, Any]) -> str:
        return ", ".join(f"{name} {value:.0f}" for name, value in sorted(found.items())) or "none"

    rows = {
        "dialogues alive / clients / minutes": f"{options.dialogues} / {options.clients} / {options.minutes:g}",
        "replies": str(result.replies),
        "compared with a fresh run / ties / wrong": f"{result.checked} / {result.ties} / {len(result.wrong)}",
        "named dialogues / lost": f"{result.named} / {result.lost}",
        "answers by status": counts(result.answers),
        "clients": counts(result.actions),
        "sessions": counts(result.sessions),
        "seconds to a whole reply, median / 99 %": "none"
        if not seconds
        else f"{statistics.median(seconds):.2f} / {seconds[int(0.99 * len(seconds))]:.2f}",
        "keys and values, most / limit": f"{bytes_text(result.kv_peak)} / {bytes_text(parse_bytes(options.kv_memory))}",
        "resident memory at the end, growth after the warm-up": f"{bytes_text(end)}, {100 * result.growth:+.1f} %",
        "broken": "; ".join(result.failures()) or "nothing",
    }
    lines = [
        f"# Soak: {result.model}",
        "",
        f"sonic-kv {result.version}, seed {options.seed}",
        "",
        table(["what", "found"], [*rows.items()]),
    ]
    for wrong in result.wrong[:SHOWN]:
        lines += ["", "```json", json.dumps(wrong, ensure_ascii=False), "```"]
    if result.log:
        lines += ["", "The server's log:", "", "```", result.log, "```"]
    more = {"options": asdict(options), "growth": result.growth, "failures": result.failures()}
    return Report("\n".join(lines) + "\n", {**vars(result), **more})
