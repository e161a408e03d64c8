"""Laws of connections: whoever only waits cannot keep others out, and the server ends in time."""

import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from serving import Served, serving, user
from tiny import tiny_model

from sonic_kv.errors import ConfigError
from sonic_kv.model.model import SonicModel
from sonic_kv.server.connections import most_connections

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


def connect(server: Served) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 80), timeout=10)


@pytest.mark.parametrize("start", [b"", b"GET / HT", HEAD, HEAD + b"Content-Length: 1000\r\n\r\n{"])
def test_connections_that_only_wait_keep_nobody_out(model: SonicModel, start: bytes) -> None:
    with serving(model, max_connections=16) as server, ExitStack() as stack:
        idle = []
        for _ in range(60):
            idle.append(stack.enter_context(connect(server)))
            idle[-1].sendall(start)
        for _ in range(3):
            with httpx.Client(base_url=server.url, timeout=5) as client:
                assert client.get("/healthz").status_code == 200
        assert server.chat([user("hi")], max_tokens=2).status_code == 200


def test_a_reply_under_way_is_not_closed_for_others(model: SonicModel) -> None:
    body = {"model": "tiny", "messages": [user("go on")], "max_tokens": 200, "stream": True}
    with serving(model, max_connections=8) as server, ExitStack() as stack:
        response = stack.enter_context(server.http.stream("POST", "/v1/chat/completions", json=body))
        lines = response.iter_lines()
        next(lines)
        for _ in range(30):
            stack.enter_context(connect(server))
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_connections_leave_room_for_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        assert most_connections(512) == 128
        assert most_connections(50) == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def process(store: Path, *more: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server of its own."""
    command = [sys.executable, "-m", "sonic_kv.cli", "serve", "--model", "tiny", "--port", "0"]
    command += ["--store", str(store), *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as served:
        try:
            assert served.stderr is not None
            url = next(line.split(" at ")[1].split()[0] for line in served.stderr if " at http" in line)
            while True:
                try:
                    httpx.get(f"{url}/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.02)
            yield served, url
        finally:
            served.kill()


@pytest.mark.slow
def test_many_connections_at_once_do_not_use_up_files(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        server = process(tmp_path)
        served, url = server.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with ExitStack() as stack:
        stack.push(server)
        place = httpx.URL(url).host, httpx.URL(url).port
        for _ in range(600):
            stack.enter_context(socket.create_connection(place)).sendall(HEAD)
        assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
        served.terminate()
        assert served.stderr is not None
        assert "system resource" not in served.stderr.read()


@pytest.mark.slow
def test_told_to_end_a_server_finishes_short_replies_and_leaves_the_rest(tmp_path: Path) -> None:
    body = {"model": "tiny", "messages": [user("Tell me a story.")], "stream": True, "seed": 1}
    with process(tmp_path, "--drain-seconds", "4") as (served, url), ExitStack() as stack:
        host, port = httpx.URL(url).host, httpx.URL(url).port
        for start in (b"", HEAD + b"Content-Length: 10\r\n\r\n{"):  # peers that never finish
            stack.enter_context(socket.create_connection((host, port))).sendall(start)
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        streams = []
        # hot replies of many seeds: however short some of them turn out, one is under way when time is up
        for seed, (tokens, warmth) in enumerate([(8, 0.0)] + [(4096, 4.0)] * 8):
            asked = {**body, "seed": seed, "max_tokens": tokens, "temperature": warmth, "top_k": -1}
            response = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=asked))
            streams.append(response.iter_lines())
            next(streams[-1])
        served.send_signal(signal.SIGTERM)
        short, *long = [[line for line in lines if line][-1] for lines in streams]
        assert short == "data: [DONE]"
        assert any("the server is stopping" in last for last in long)
        served.wait(timeout=60)  # the peers would hold it up for ever
        assert served.stderr is not None
        assert "Traceback" not in served.stderr.read()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_https_is_served_with_a_certificate(model: SonicModel, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    more = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *more], check=True, capture_output=True)
    with (
        serving(model, tls_certificate=str(certificate), tls_key=str(key)) as server,
        httpx.Client(verify=ssl.create_default_context(cafile=certificate)) as client,
    ):
        url = server.url.replace("http:", "https:")
        body = {"messages": [user("hi")], "max_tokens": 2, "stream": True}
        assert client.post(f"{url}/v1/chat/completions", json=body).text.endswith("data: [DONE]\n\n")
    with (
        pytest.raises(ConfigError, match=f"cannot use the certificate {key}"),
        serving(model, tls_certificate=str(key), tls_key=str(key)),
    ):
        pass
