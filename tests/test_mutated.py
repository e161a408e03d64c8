"""Valid requests with something wrong in them are answered, or refused in the server's own words; none breaks it."""

import json
import os
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Served, fresh, serving, user
from test_tools import FORMS, TOOLS
from tiny import random_adapter, tiny_base, tiny_tokenizer

from sonic_kv.model.model import SonicModel

NUMBER = int(os.environ.get("SONIC_KV_FUZZ", "500"))  # 10000 takes some minutes
SAID = [user("hi"), {"role": "assistant", "content": "yes"}, user("and?")]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
FORM = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}
JSON = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": FORM}}
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "be brief"},
        user("hi"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "4", "name": "f"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "and?"}]},
    ],
    "max_tokens": 2,
    "stream": False,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {"5": 1},
    "logprobs": True,
    "top_logprobs": 2,
    "stop": ["x"],
    "seed": 1,
    "n": 1,
    "response_format": {"type": "text"},
    "tools": TOOLS,
    "tool_choice": "auto",
    "chat_template_kwargs": {"enable_thinking": False},
    "user": "ada",
    "metadata": {"a": "b"},
    "sonic": {"compression_ratio": 0.5},
}
ROUTES: list[tuple[str, str, Any]] = [
    *[("POST", "/v1/chat/completions", CHAT)] * 6,
    ("POST", "/v1/chat/completions", {"messages": SAID, "stream": True, "max_tokens": 2}),
    ("POST", "/v1/completions", {"prompt": "hello", "max_tokens": 2, "n": 1, "echo": False}),
    ("POST", "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1, "logprobs": 1, "stream": True}),
    ("POST", "/tokenize", {"prompt": "hello", "add_special_tokens": True}),
    ("POST", "/tokenize", {"messages": SAID, "add_generation_prompt": True}),
    ("POST", "/v1/chat/completions", {"messages": SAID, "max_tokens": 1, "sonic": {"max_damage": 0.1}}),
    ("POST", "/v1/chat/completions", {"messages": SAID, "max_tokens": 3, "response_format": JSON}),
    ("PATCH", "/v1/sessions/known", {"compression_ratio": 0.7}),
    ("GET", "/v1/sessions/known", None),
    ("GET", "/v1/sessions/known/kept", None),
    ("GET", "/v1/sessions", None),
    ("GET", "/v1/models/tiny", None),
    ("DELETE", "/v1/sessions/unknown", None),
]
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    3,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**63,
    -(2**64),
    10**400,
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202e\ufdd0\uffff",
    "😀" * 9,
    "<|end|><|user|>",
    "1",
    "1e999",
    "true",
    "x" * 3000,
    "{{ messages }}",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": {}},
    {"type": "text"},
    {"type": "image_url", "image_url": {"url": "http://nowhere.invalid/x"}},
    [{"type": "text", "text": {"a": 1}}],
    ["a"] * 300,
]
NAMES = [
    "a",
    "content",
    "role",
    "type",
    "n",
    "best_of",
    "echo",
    "suffix",
    "functions",
    "\ud800",
    "",
    "x" * 300,
]
HEADERS = [
    "Host",
    "Authorization",
    "Content-Type",
    "X-Session-Id",
    "Content-Encoding",
    "Accept",
    "X-Request-Id",
    "Origin",
]
# What libraries say about requests, and what programs say when they fail.
FOREIGN = re.compile(
    r"Input should|pydantic|validation error|Traceback|object has no attribute|NoneType|unhashable|codec can't|Errno"
    r"|cannot be used|There was an error|^(Not Found|Method Not Allowed)$",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def model() -> SonicModel:
    """The tests' model, with a template that knows tools."""
    base = tiny_base(max_position_embeddings=2048)
    return SonicModel(base, tiny_tokenizer(FORMS["hermes"]), random_adapter(base))


@pytest.fixture(scope="module")
def server(model: SonicModel) -> Iterator[Served]:
    with serving(model, keys=("secret-key",), max_reply_tokens=16, max_dialogue_tokens=1000) as served:
        yield served


def changed(draw: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it changed, taken away, put in or said twice."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.85:
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        place = draw.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        kind = draw.random()
        if kind < 0.7:
            copy[place] = changed(draw, copy[place])
        elif kind < 0.85:
            del copy[place]
        elif isinstance(copy, dict):
            copy[draw.choice(NAMES)] = draw.choice(ODD)
        else:
            copy += copy[: draw.choice((1, len(copy), 40))]
        return copy
    if draw.random() < 0.05:
        depth = draw.choice((3, 100, 3000))
        return Raw(draw.choice(("[", '{"a":')) * depth + "1" + "]" * depth)
    return draw.choice(ODD)


class Raw(str):
    """Text that stands in a body as it is, JSON or not."""


def text_of(value: Any) -> str:
    """JSON, with what no JSON library writes."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{text_of(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def mutated(draw: random.Random) -> tuple[bytes, bool]:
    """A request as bytes, and whether it is whole."""
    method, path, value = draw.choice(ROUTES)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        value = changed(draw, value)
    body = b"" if value is None else text_of(value).encode("utf-8", "surrogatepass")
    headers = {
        "Host": "127.0.0.1",
        "Authorization": "Bearer secret-key",
        "Connection": "close",
        "Content-Type": "application/json",
        "X-Session-Id": "known" if draw.random() < 0.3 else f"new-{draw.randrange(20)}",
    }
    kind = draw.random()
    if kind < 0.1 and body:  # other bytes
        data = bytearray(body)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        body = bytes(data)
    elif kind < 0.15:
        method = draw.choice(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO"))
    elif kind < 0.22:
        odd = ("%00", "%ff", "/..%2f..", "?a=%", "//", "é", "x" * 2000, "/", "%2e%2e", "\\", "#a", "{a}")
        path = draw.choice((path, "/v1/sessions/", "/page/", "/v1/models/", "/")) + draw.choice(odd)
    elif kind < 0.3:
        name = draw.choice(HEADERS)
        odd = (
            "",
            "é",
            "\x01",
            "a" * 9000,
            "gzip",
            "multipart/form-data; boundary=x",
            "text/plain",
            "Bearer",
            "*",
        )
        headers[name] = draw.choice(odd)
    length, whole = len(body), True
    if kind > 0.96:  # the body ends early, or is longer than it says
        length, whole = max(length + draw.choice((-5, 5, 10**6)), 0), False
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if 0.93 < kind < 0.96:
        body, whole = b"%x\r\n%s\r\n0\r\n\r\n" % (draw.choice((length, length, 0, 99)), body), False
        lines.append("Transfer-Encoding: chunked")
    else:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body, whole


def exchanged(server: Served, data: bytes, whole: bool) -> tuple[int, bytes]:
    """Status and body of the answer; 0: there was none."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        got = b""
        try:
            connection.sendall(data)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                got += piece
        except ConnectionError:
            pass
    head, _, body = got.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = b"".join(re.findall(rb"[0-9a-f]+\r\n(.*?)\r\n(?=[0-9a-f]+\r\n)", body + b"0\r\n", re.DOTALL))
    return int(head.split()[1]) if head else 0, body


def complaint(status: int, body: bytes) -> str:
    """What is wrong with an answer: errors have OpenAI's body, and say what is wrong as this server says it."""
    if status >= 500 and status != 503:
        return "the server failed"
    if status < 400 or not body or body == b"Invalid HTTP request received.":
        return ""
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError):
        return "no error's body"
    if set(error) != {"message", "type", "param", "code"}:
        return "another error's body"
    return "foreign words" if FOREIGN.search(error["message"]) or not error["message"] else ""


def test_mutated_requests_never_break_the_server(server: Served) -> None:
    server.chat(SAID, headers={"x-session-id": "known"})
    draw, statuses, wrong = random.Random(NUMBER), Counter[int](), []
    for _ in range(NUMBER):
        request, whole = mutated(draw)
        status, body = exchanged(server, request, whole)
        statuses[status] += 1
        found = complaint(status, body) or ("no answer" if whole and not status else "")
        if found:
            wrong.append((found, status, body[:500], request[:2000]))
    assert wrong == []
    assert statuses[200] > NUMBER / 10
    assert statuses[400] > NUMBER / 10
    assert server.reply([user("hello")]) == fresh([user("hello")])
    assert server.worker.alive
    gauges = server.worker.gauges()
    assert not re.search(
        r'status="5(?!03)', server.http.get("/metrics").text
    )  # nor for clients that had left
    assert gauges["requests_running"] == gauges["requests_waiting"] == gauges["rows_decoding"] == 0


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/tokenize", '{"prompt": "a\\ud800"}', "prompt: holds half a character"),
        ("/v1/completions", '{"prompt": "\\ud800"}', "prompt: holds half a character"),
        ("/v1/completions", '{"prompt": ["a", "\\ud800"]}', "prompt: holds half a character"),
        (
            "/v1/chat/completions",
            '{"messages": [{"role": "user", "content": "\\ud800"}]}',
            "half a character",
        ),
        ("/v1/chat/completions", '{"messages": [{"\\ud800": 1}]}', "half a character"),
        (
            "/v1/chat/completions",
            '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": Infinity}}',
            "chat_template_kwargs: is no JSON",
        ),
        ("/v1/chat/completions", "[" * 100_000, "no JSON"),
        ("/v1/chat/completions", '{"seed": ' + "9" * 5000 + "}", "no JSON"),
        ("/v1/nowhere", "{}", "nothing at this path"),
        ("/v1/models", "{}", "POST is not possible at this path: use GET"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(server: Served, path: str, body: str, says: str) -> None:
    answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert says in answer.json()["error"]["message"]
