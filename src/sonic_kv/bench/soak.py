"""`sonic-kv bench soak`: a server at its memory limit, and many dialogues that come, go on, branch and leave.

The server is a process of its own, started as people start it. Every reply is compared afterwards with what
a `ChatSession` made for the same messages alone says.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from sonic_kv.bench.options import BenchSoakOptions
from sonic_kv.bench.soak_record import Dialogue, Result, Said, compare
from sonic_kv.data.options import SynthConfig
from sonic_kv.data.synth import generate_dialogues
from sonic_kv.errors import ServeError
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import ModelOptions
from sonic_kv.text import Progress

RATIOS = (0.8, 0.8, 0.5)  # of the dialogues, by draw


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
            given = value is not None and value is not False
            arguments += (
                [f"--{flag.replace('_', '-')}", *([] if value is True else [str(value)])] if given else []
            )
        log = Path(folder) / "log"
        with launched(arguments, log) as (process, url):
            dialogues = asyncio.run(_Crowd(url, result).run(process))
        result.log = "\n".join(log.read_text().splitlines()[1:])[-2000:]
    compare(model, result, dialogues)
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
        self._http = httpx.AsyncClient(base_url=url, timeout=600.0, limits=httpx.Limits(max_connections=None))
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
            await self._look_for_all()
        return self.all

    async def _look_for_all(self) -> None:
        """Count the named dialogues of which the server does not have all that it acknowledged."""
        listed = (await self._http.get("/v1/sessions")).json()["data"]
        there = {one["id"]: one["messages"] for one in listed}
        for dialogue in self.all:
            if dialogue.name is not None and dialogue.at is not dialogue.root:
                self._result.named += 1
                self._result.lost += there.get(dialogue.name, 0) < len(dialogue.messages("")) - 1

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
