"""Laws of what stands before the routes: strangers are turned away early, and every answer is counted and named."""

import json
import logging
import re
import socket
from collections.abc import Iterator

import httpx
import pytest
from serving import Served, serving, user
from tiny import tiny_model

from sonic_kv.model.model import SonicModel
from sonic_kv.server.logs import AsJson, AsText, Request, Seldom, request_id


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def server(model: SonicModel) -> Iterator[Served]:
    with serving(model, keys=("key-one",), cors_origins=("https://example.org",)) as served:
        yield served


def raw(server: Served, head: str, body: bytes = b"", seconds: float = 10.0) -> bytes:
    """What the server answers to bytes, until it closes the connection."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=seconds) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


POST = "POST /v1/chat/completions HTTP/1.1\nHost: localhost\nContent-Type: application/json"


def test_a_stranger_is_turned_away_before_the_body_is_there(server: Served) -> None:
    answer = raw(server, f"{POST}\nContent-Length: 3000000\nAuthorization: Bearer wrong", b"{")
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()


def test_a_name_of_this_machine_is_known_in_every_form(server: Served) -> None:
    headers = {"authorization": "Bearer key-one"}
    for name in ("localhost", "localhost:8000", "127.0.0.1:80", "[::1]", "[::1]:8000", "LOCALHOST"):
        assert server.http.get("/v1/models", headers={"host": name, **headers}).status_code == 200, name
    for name in ("evil.example", "[::2]", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        assert server.http.get("/v1/models", headers={"host": name, **headers}).status_code == 400, name


def test_pages_of_a_named_origin_may_call_with_headers_of_their_own(server: Served) -> None:
    asked = {
        "origin": "https://example.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
    }
    answer = server.http.options("/v1/chat/completions", headers=asked)
    assert answer.status_code == 200
    assert "x-stainless-retry-count" in answer.headers["access-control-allow-headers"]
    refused = server.http.options("/v1/chat/completions", headers={**asked, "origin": "https://evil.example"})
    assert refused.status_code == 400
    other = server.http.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_answers_are_not_to_be_guessed_at_or_framed(server: Served) -> None:
    for path in ("/", "/healthz", "/v1/models", "/nowhere"):
        assert server.http.get(path).headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in server.http.get("/").headers["content-security-policy"]


def test_every_answer_has_the_requests_id(server: Served) -> None:
    given = server.http.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    odd = server.http.get("/v1/models", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", odd)
    refused = server.http.get("/v1/models", headers={"authorization": "no"})
    assert refused.status_code == 401
    assert refused.headers["x-request-id"]
    stream = server.chat([user("hi")], stream=True, max_tokens=2)
    assert stream.headers["x-request-id"]


def test_what_failed_unforeseen_is_counted_and_told_without_its_reasons(model: SonicModel) -> None:
    with serving(model) as broken:
        del broken.worker.default_budget
        answer = broken.http.get("/v1/models", headers={"x-request-id": "lost"})
        assert answer.status_code == 500
        assert "default_budget" not in answer.text
        assert "lost" in json.loads(answer.text)["error"]["message"]
        assert (
            'sonic_kv_requests_total{route="/v1/models",status="500"} 1.0' in broken.http.get("/metrics").text
        )


def test_a_failure_that_repeats_is_logged_once_a_minute() -> None:
    seldom, lines = Seldom(), []
    for number in range(100):
        for text, error in (("no room on %s", None), ("failed", OSError("one")), ("failed", OSError("two"))):
            exception = None if error is None else (type(error), error, None)
            record = logging.LogRecord(
                "x", logging.ERROR, "", 0, text, (number,) if "%" in text else (), exception
            )
            if seldom.filter(record):
                lines.append(record.getMessage())
    assert lines == ["no room on 0", "failed", "failed"]
    assert all(seldom.filter(logging.LogRecord("x", logging.INFO, "", 0, "fine", (), None)) for _ in range(3))


def test_a_line_of_the_log_names_its_request() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "two\nlines", (), None)
    token = request_id.set("abc")
    Request().filter(record)
    request_id.reset(token)
    line = json.loads(AsJson().format(record))
    assert (line["request"], line["level"], line["message"]) == ("abc", "INFO", "two\nlines")
    assert "INFO x [abc] two" in AsText().format(record)


def test_times_are_told_up_to_minutes(model: SonicModel) -> None:
    with serving(model) as timed:
        timed.chat([user("hi")], max_tokens=4)
        timed.chat([user("hi")], max_tokens=4, stream=True)
        text = timed.http.get("/metrics").text
    for name, count in (("queue", 2), ("reply", 2), ("first_token", 1), ("token", 1)):
        assert f"sonic_kv_{name}_seconds_count {count}.0" in text
        assert f'sonic_kv_{name}_seconds_bucket{{le="600.0"}}' in text
