"""`sonic-kv bench soak`: a server at its memory limit, and many dialogues that come, go on, branch and leave.

The server is a process of its own, started as people start it. Every reply is compared afterwards with what
a `ChatSession` made for the same messages alone says.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from sonic_kv import __version__
from sonic_kv.bench.options import BenchSoakOptions
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues
from sonic_kv.errors import ServeError
from sonic_kv.files import write_atomic
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import ModelOptions
from sonic_kv.options import parse_bytes
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession
from sonic_kv.session.work import run
from sonic_kv.text import Progress, bytes_text, percent_text

RATIOS = (0.8, 0.8, 0.5)  # of the dialogues, by draw
TIE = 1e-3  # logits as close as this may change places when other rows are computed beside them
GROWTH = 0.10  # of resident memory after the warm-up
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


def measure(model: SonicModel, name: str, named: ModelOptions, options: BenchSoakOptions) -> Result:
    """Run a server and its clients, then compare what it replied.

    Args:
        model: what the replies are compared with; the server loads its own.
        named: how the server is told to load it.
    """
    result = Result(name, options)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--store", f"{folder}/store", "--kv-memory", options.kv_memory]
        arguments += ["--max-waiting", str(options.clients // 2)]  # so that some are refused, too
        for flag, value in vars(named).items():
            arguments += [] if value is None else [f"--{flag.replace('_', '-')}", str(value)]
        log = Path(folder) / "log"
        with launched(arguments, log) as (process, url):
            dialogues = asyncio.run(_Crowd(url, result).run(process))
        result.log = "\n".join(log.read_text().splitlines()[1:])[-2000:]
    _compare(model, result, dialogues)
    return result


@contextmanager
def launched(arguments: Sequence[str], log: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`sonic-kv serve` as people run it on a free port, its standard error in `log`, and where it listens.

    Raises:
        ServeError: it does not start.
    """
    command = [sys.executable, "-m", "sonic_kv.cli", "serve", "--port", "0", *arguments]
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        yield process, _wait_for(process, log)
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", log: Path) -> str:
    while process.poll() is None:
        said = log.read_text()
        if " at http" in said:
            url = said.split(" at ")[1].split()[0]
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/healthz").status_code == 200:
                    return url
        time.sleep(0.02)
    raise ServeError(f"the server did not start: {log.read_text().strip()}")


class _Crowd:
    """The clients: each takes a dialogue that nobody else has at hand, and does something with it."""

    def __init__(self, url: str, result: Result) -> None:
        self._options, self._result = result.options, result
        self._draw = random.Random(result.options.seed)
        self._http = httpx.AsyncClient(base_url=url, timeout=120.0, limits=httpx.Limits(max_connections=None))
        self._scripts = generate_dialogues(
            SynthConfig(split="validation", seed=result.options.seed, dialogues=1 << 40, max_exchanges=32)
        )
        self.all: list[Dialogue] = []
        self._free = [self._new() for _ in range(result.options.dialogues)]
        self._end = 0.0

    def _new(self) -> Dialogue:
        messages = next(self._scripts)["messages"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        number = len(self.all)
        texts = [message["content"] for message in messages if message["role"] == "user"]
        dialogue = Dialogue(
            system,
            self._draw.choice(RATIOS),
            f"soak-{number}" if self._draw.random() < 0.5 else None,
            iter(texts),
        )
        self.all.append(dialogue)
        return dialogue

    async def run(self, process: "subprocess.Popen[bytes]") -> list[Dialogue]:
        start = time.monotonic()
        self._end = start + 60 * self._options.minutes
        async with self._http:
            watch = asyncio.create_task(self._watch(process.pid, start))
            await asyncio.gather(*(self._client() for _ in range(self._options.clients)))
            watch.cancel()
            self._result.sessions = await self._figures("sonic_kv_sessions")
        return self.all

    async def _watch(self, pid: int, start: float) -> None:
        """Once a second: the server's memory, as it and as the system counts it."""
        server = psutil.Process(pid)
        total = round(60 * self._options.minutes)
        with Progress("second", total) as bar:
            while True:
                now = time.monotonic() - start
                self._result.resident.append((now, server.memory_info().rss))
                found = await self._figures("sonic_kv_kv_bytes")
                self._result.kv_peak = max(self._result.kv_peak, int(found.get("", 0)))
                bar.add(min(round(now), total) - bar.done, f"{self._result.replies} replies")
                await asyncio.sleep(1.0)

    async def _figures(self, name: str) -> dict[str, float]:
        """One family of the server's figures, by its labels' values."""
        with suppress(httpx.TransportError):
            text = (await self._http.get("/metrics")).text
            for family in text_string_to_metric_families(text):
                if family.name == name:
                    return {",".join(sample.labels.values()): sample.value for sample in family.samples}
        return {}

    async def _client(self) -> None:
        while time.monotonic() < self._end:
            number = self._draw.randrange(len(self._free))
            dialogue = self._free.pop(number)
            await self._act(dialogue)
            over = dialogue.tokens > self._options.max_tokens or self._draw.random() < 0.03
            if over:
                self._result.actions["left"] += 1
            self._free.append(self._new() if over else dialogue)

    async def _act(self, dialogue: Dialogue) -> None:
        path = dialogue.at.path()
        chance = self._draw.random()
        text = next(dialogue.texts, None) or "And what did I say before that?"
        action = "went on"
        if chance < 0.12 and path:
            action = "branched"
            dialogue.at = self._draw.choice(path).before or dialogue.root
        elif chance < 0.18 and path:
            action, text = "asked again", dialogue.at.user
            dialogue.at = dialogue.at.before or dialogue.root
        elif chance < 0.28:
            action = "disconnected"
        self._result.actions[action] += 1
        try:
            await self._ask(dialogue, text, leave=action == "disconnected")
        except httpx.HTTPError as error:
            self._result.answers[type(error).__name__] += 1

    async def _ask(self, dialogue: Dialogue, text: str, leave: bool) -> None:
        body = {
            "model": (await self._model()),
            "messages": dialogue.messages(text),
            "max_tokens": self._options.reply_tokens,
            "sonic": {"compression_ratio": dialogue.ratio},
            "stream": leave or self._draw.random() < 0.5,
            "stream_options": {"include_usage": True},
        }
        headers = {} if dialogue.name is None else {"x-session-id": dialogue.name}
        start = time.monotonic()
        call = self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers)
        if leave and self._draw.random() < 0.5:  # before anything has come
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._read(call, leave=False), self._draw.random())
            return
        found = await self._read(call, leave)
        if found is None:
            return
        reply, reason, tokens = found
        self._result.seconds.append(time.monotonic() - start)
        self._result.replies += 1
        said = Said(dialogue.at, text, reply, reason)
        dialogue.at.after.append(said)
        dialogue.at, dialogue.tokens = said, tokens

    async def _read(self, call: Any, leave: bool) -> tuple[str, str, int] | None:
        """The reply, why it ended, and the tokens of the dialogue; None: there is none."""
        async with call as response:
            if response.status_code != 200:
                await response.aread()
                self._result.answers[str(response.status_code)] += 1
                await asyncio.sleep(
                    float(response.headers.get("retry-after", 0)) * self._draw.uniform(0.5, 1.5)
                )
                return None
            if not response.headers["content-type"].startswith("text/event-stream"):
                whole = json.loads(await response.aread())
                self._result.answers["200"] += 1
                (choice,) = whole["choices"]
                return choice["message"]["content"], choice["finish_reason"], whole["usage"]["total_tokens"]
            text, reason, tokens = "", "", 0
            async for line in response.aiter_lines():
                if leave and text:
                    return None
                if line == "data: [DONE]":
                    self._result.answers["200"] += 1
                    return text, reason, tokens
                chunk = json.loads(line.removeprefix("data: ") or "{}")
                if "error" in chunk:
                    self._result.answers[f"{chunk['error']['code']} in a stream"] += 1
                    return None
                for choice in chunk.get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
                tokens = (chunk.get("usage") or {}).get("total_tokens", tokens)
        self._result.answers["a stream without an end"] += 1
        return None

    async def _model(self) -> str:
        if not hasattr(self, "_name"):
            self._name: str = (await self._http.get("/v1/models")).json()["data"][0]["id"]
        return self._name


# --- comparing ----------------------------------------------------------------------------------


def _compare(model: SonicModel, result: Result, dialogues: Sequence[Dialogue]) -> None:
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


# --- telling ------------------------------------------------------------------------------------


def report(result: Result) -> str:
    """What happened, as a Markdown page."""
    options, seconds = result.options, sorted(result.seconds)
    end = result.resident[-1][1] if result.resident else 0

    def counts(found: dict[str, Any]) -> str:
        return ", ".join(f"{name} {value:.0f}" for name, value in sorted(found.items())) or "none"

    rows = {
        "dialogues alive / clients / minutes": f"{options.dialogues} / {options.clients} / {options.minutes:g}",
        "replies": str(result.replies),
        "compared with a fresh run / ties / wrong": f"{result.checked} / {result.ties} / {len(result.wrong)}",
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
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    for wrong in result.wrong[:SHOWN]:
        lines += ["", "```json", json.dumps(wrong, ensure_ascii=False), "```"]
    if result.log:
        lines += ["", "The server's log:", "", "```", result.log, "```"]
    return "\n".join(lines) + "\n"


def as_json(result: Result) -> dict[str, Any]:
    """Everything that was counted."""
    return {
        **vars(result),
        "options": asdict(result.options),
        "growth": result.growth,
        "failures": result.failures(),
    }


def write(result: Result, folder: str | Path) -> None:
    """`result.json` and `report.md`."""
    write_atomic(Path(folder) / "result.json", json.dumps(as_json(result), indent=1).encode())
    write_atomic(Path(folder) / "report.md", report(result).encode())
