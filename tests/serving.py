"""A real server on a real socket, in the process."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from tiny import tiny_model

from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.model.model import SonicModel
from sonic_kv.server.app import make_app
from sonic_kv.server.connections import HttpServer
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.run import listen, store_of
from sonic_kv.server.store import Store
from sonic_kv.server.worker import Worker
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

HALF = Budget(compression_ratio=0.5)
SMALL = SessionConfig(min_segment_tokens=16, max_segment_tokens=40)
BRIEF = SamplingConfig(max_new_tokens=12)
OPTIONS = ServeOptions(store="none", slice_tokens=16, kv_memory="64MiB", max_reply_tokens=1024)


@dataclass
class Served:
    """A running server, and a client of it."""

    url: str
    worker: Worker
    http: httpx.Client

    def chat(self, messages: Sequence[dict[str, str]], **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        body = {"model": "tiny", "messages": list(messages), **more}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def reply(self, messages: Sequence[dict[str, str]], **more: Any) -> str:
        response = self.chat(messages, **more)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        return text


@contextmanager
def serving(
    model: SonicModel,
    store: Store | Path | str | None = None,
    keys: tuple[str, ...] = (),
    config: SessionConfig = SMALL,
    budget: Budget = HALF,
    **options: Any,
) -> Iterator[Served]:
    """Serve `model` as "tiny"."""
    chosen = replace(OPTIONS, store="none" if store is None else str(store), **options)
    if isinstance(store, (Path, str)):
        store = store_of(chosen)
    worker = Worker(model, config, budget, chosen, store)
    server = HttpServer(make_app(worker, "tiny", BRIEF, chosen, keys), worker, chosen)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        with httpx.Client(base_url=url, timeout=300) as client:
            if keys:
                client.headers["authorization"] = f"Bearer {keys[0]}"
            yield Served(url, worker, client)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@cache
def oracle() -> SonicModel:
    """The tests' model once more: the server's belongs to the server's thread."""
    return tiny_model(max_position_embeddings=2048)


def fresh(messages: Sequence[dict[str, str]], budget: Budget = HALF, length: int = 12) -> str:
    """What a session made for these messages alone replies to the last one."""
    model = oracle()
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    chat = ChatSession(model, budget, system, SMALL)
    history = list(messages[system is not None : -1])
    if history and history[-1]["role"] == "user":
        chat.extend([*history, messages[-1]])
        return chat.send(None, SamplingConfig(max_new_tokens=length)).text
    if history:
        chat.extend(history)
    return chat.send(messages[-1]["content"], SamplingConfig(max_new_tokens=length)).text
