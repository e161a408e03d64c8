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


# What real clients send beside the text, and changes nothing.
NO_OPS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi", "type": "text", "name": "ada", "metadata": {"a": 1}}]},
    {
        "messages": [
            user("hi"),
            {**assistant("yes"), "tool_calls": [], "annotations": [], "reasoning_content": "hm"},
            user("hi"),
        ]
    },
    {"messages": [user("hi"), {"role": "assistant", "content": None}, user("hi")]},
    {"messages": [{"role": "user", "content": []}]},
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}],
            }
        ]
    },
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": []},
    {"tool_choice": "auto", "response_format": {"type": "text"}, "logit_bias": {}, "user": 7},
    {"logprobs": False, "top_logprobs": 0, "store": False, "metadata": {}, "service_tier": "auto"},
    {"modalities": ["text"], "verbosity": "medium", "prompt_cache_key": "k", "safety_identifier": "u"},
    {"reasoning_effort": "low", "stream_options": {"include_usage": True}, "prediction": None},
    {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "best_of": 1, "cache_prompt": True},
    {"top_k": 0, "keep_alive": "5m", "options": {"num_ctx": 4}, "chat_template_kwargs": {}},
    {"stop": []},
    {"stop": ""},
    {"stop": [""]},
    {"stop": [f"<{number}>" for number in range(17)]},
    {"max_tokens": -1},
    {"max_tokens": 0},
    {"max_tokens": 100_000},
    {"max_completion_tokens": 32000, "max_tokens": 3},
    {"top_p": 0},
    {"seed": -1},
    {"temperature": 1e-300},
    {"presence_penalty": 0.0, "frequency_penalty": 0},
    {"model": ""},
]

# What cannot be done on any model: the status, and what the message says.
REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-5"}, 404, "gpt-5"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [assistant("x")]}, 400, "user"),
    ({"messages": [user("\ud800")]}, 400, "character"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages.0.content: part 0 is of type 'image_url'",
    ),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content: must be a text"),
    ({"messages": [{"content": "x"}]}, 400, "messages.0.role: is missing"),
    ({"messages": "hi"}, 400, "messages: must be a list"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias.5: must be at most 100"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias.x: must be a whole number"),
    ({"top_logprobs": 2}, 400, "top_logprobs: give logprobs: true with it"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs: must be at most 20"),
    ({"presence_penalty": 3}, 400, "presence_penalty: must be at most 2"),
    ({"n": 0}, 400, "n: must be at least 1"),
    ({"temperature": -1}, 400, "temperature: must be at least 0"),
    ({"max_tokens": 1.5}, 400, "max_tokens: must be a whole number"),
    ({"max_tokens": -2}, 400, "max_tokens"),
    ({"stop": [1]}, 400, "stop: must be a text, or a list of texts"),
    ({"sonic": {"compression_ratio": 1.0}}, 400, "compression_ratio"),
    ({"sonic": {"ratio": 0.5}}, 400, "ratio"),
    ({"sonic": {"max_damage": 0.0}}, 400, "max_damage: must be above 0"),
    ({"sonic": {"max_damage": 0.1, "compression_ratio": 0.5}}, 400, "not both"),
]


def check_front(http: httpx.Client) -> None:
    """What clients count on, whatever decodes: fields, refusals, streams, texts, and sessions that are erased."""
    asked = {"model": "tiny", "messages": [user("hi")], "max_tokens": 4, "temperature": 0}
    for change in NO_OPS:
        answer = http.post("/v1/chat/completions", json={**asked, **change})
        assert answer.status_code == 200, (change, answer.text)
    for change, status, says in REFUSED:
        body = json.dumps({**asked, **change})
        answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, says in answer.json()["error"]["message"]) == (status, True), answer.text
    named = {"x-session-id": "front", "x-request-id": "mine"}
    whole = http.post("/v1/chat/completions", json=asked, headers=named)
    assert whole.headers["x-session-id"] == "front"
    assert set(whole.headers.get_list("x-request-id", split_commas=True)) == {
        "mine"
    }  # Ray's proxy adds it again
    said = whole.json()["choices"][0]["message"]["content"]
    streamed = http.post("/v1/chat/completions", json={**asked, "stream": True, "n": 2})
    assert streamed.headers["x-session-id"]
    for choice in range(2):
        deltas = [c["delta"] for e in events(streamed) for c in e["choices"] if c["index"] == choice]
        assert "".join(delta.get("content", "") for delta in deltas) == said
    more = [*asked["messages"], assistant(said), {"role": "system", "content": "be kind"}, user("so?")]
    answer = http.post("/v1/chat/completions", json={**asked, "messages": more}, headers=named)
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    texts = http.post("/v1/completions", json={"model": "tiny", "prompt": ["hi", "so"], "max_tokens": 3})
    assert [choice["index"] for choice in texts.json()["choices"]] == [0, 1]
    for path in ("/healthz", "/health", "/readyz", "/version", "/metrics", "/v1/models/tiny"):
        assert http.get(path).status_code == 200
    assert http.post("/tokenize", json={"messages": more}).json()["count"] > 0
    assert (
        http.patch("/v1/sessions/front", json={"compression_ratio": 0.9}).json()["compression_ratio"] == 0.9
    )
    assert len(http.get("/v1/sessions/front").json()["messages"]) == 5
    assert "front" in [one["id"] for one in http.get("/v1/sessions").json()["data"]]
    assert http.delete("/v1/sessions/front").json()["deleted"]
    assert http.get("/v1/sessions/front").status_code == 404
    assert "front" not in [one["id"] for one in http.get("/v1/sessions").json()["data"]]
