"""Laws of `serve --engine vllm`: replies are the session's own, whatever becomes of vLLM, the gateway or a client.

What needs vLLM runs in its own virtual environment: `make test-vllm`.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, assistant, check_front, serving, user
from test_vllm import LENGTH, make_model
from test_vllm import serving as vllm_server
from tiny import DIALOGUE, tiny_model

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel
from sonic_kv.cli import main as cli
from sonic_kv.errors import ConfigError
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.vllm import Exports
from sonic_kv.server.worker import Worker
from sonic_kv.session.generate import detokenize
from sonic_kv.session.session import Reply
from sonic_kv.session.state import export_of
from sonic_kv.session.work import run

COMPACT = SessionConfig(positions="compact", min_segment_tokens=24, max_segment_tokens=64)
HALF = Budget(compression_ratio=0.5)
NEW = 48
TEXTS = [
    "My sister Ada lives in Oslo.",
    "The door code is 4711, keep it.",
    "Hi, how are you?",
    "Where does Ada live?",
    "What is the door code? Tell me a story about it.",
    "My brother is called Leo.",
    "What do you know about my family?",
    "Thanks.",
    "Count to ten.",
    "Who is Leo?",
]
LONG = 1500  # tokens of a reply that somebody does not wait for


def gateway(
    model: SonicModel, url: str, folder: Path, store: Any = None, **options: Any
) -> AbstractContextManager[Served]:
    return serving(
        model,
        store,
        config=COMPACT,
        engine="vllm",
        vllm_url=url,
        vllm_folder=str(folder),
        kv_memory="512MiB",
        **options,
    )


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


# --- without vLLM -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


@pytest.mark.parametrize("stream", [False, True])
def test_a_vllm_that_is_not_there_is_a_clear_error(tiny: SonicModel, tmp_path: Path, stream: bool) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    with gateway(tiny, f"{url}/v1", tmp_path / "exports", tmp_path / "store") as server:
        for _ in range(2):
            answer = server.chat([user("hi")], stream=stream, headers={"x-session-id": "ada"})
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "upstream_failed"
            assert answer.json()["error"]["message"].startswith(f"vLLM at {url} cannot be reached")
        assert server.http.get("/v1/sessions/ada").status_code == 404  # nothing has happened
        assert server.http.get("/healthz").status_code == 200


def test_a_silent_vllm_is_given_up(tiny: SonicModel, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with gateway(tiny, url, tmp_path, vllm_timeout=0.5) as server:
            answer = server.chat([user("hi")])
    assert answer.status_code == 502
    assert "gave no sign for 0.5 s" in answer.json()["error"]["message"]


def test_a_server_that_is_no_vllm_is_refused(tiny: SonicModel, tmp_path: Path) -> None:
    with serving(tiny_model()) as other, gateway(tiny, other.url, tmp_path) as server:
        answer = server.chat([user("hi")])
    assert answer.status_code == 502
    assert "vLLM runs without sonic-kv's connector" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "vllm"}, "go together"),
        ({"vllm_url": "http://x"}, "go together"),
        ({"engine": "vllm", "vllm_url": "x:1"}, "must be http://host:port"),
        ({"engine": "vllm", "vllm_url": "http://x", "vllm_timeout": 0.0}, "must be above 0"),
        ({"engine": "tpu"}, "local, vllm or ray"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ServeOptions(**options)


def test_sessions_of_other_positions_are_refused(tiny: SonicModel, tmp_path: Path) -> None:
    options = ServeOptions(engine="vllm", vllm_url="http://x", vllm_folder=str(tmp_path))
    with pytest.raises(ConfigError, match="positions='compact'"):
        Worker(tiny, SessionConfig(), HALF, options, None)


COMMAND = [
    "serve",
    "--model",
    "tiny",
    "--engine",
    "vllm",
    "--store",
    "none",
    "--vllm-url",
    f"http://127.0.0.1:{unused_port()}",
]


def test_the_command_refuses_original_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text('[session]\npositions = "original"\n')
    options = ["--vllm-folder", str(tmp_path), "--port", "0", "--config", str(tmp_path / "run.toml")]
    assert cli.main([*COMMAND, *options]) == 2
    assert "needs positions='compact'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_takes_compact_positions_by_itself(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sonic_kv.cli",
        *COMMAND,
        "--vllm-folder",
        str(tmp_path),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        process.terminate()
        process.stderr.read()
    assert any("requests fail until this is mended" in line for line in said)
    assert any(line.startswith("sonic-kv: tiny at http://127.0.0.1:") for line in said)


def test_a_folder_of_others_is_not_taken_for_exports(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        Exports(str(tmp_path), ttl=0.0, limit=1)
    assert list(tmp_path.iterdir()) == [thesis]
    exports = Exports(str(tmp_path / "new"), ttl=0.0, limit=1)
    (tmp_path / "new" / "notes.safetensors").write_bytes(b"mine")
    exports.sweep()
    exports.close()
    assert (tmp_path / "new" / "notes.safetensors").exists()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_an_export_stays_as_long_as_it_is_used(tiny: SonicModel, tmp_path: Path) -> None:
    chats = [ChatSession(tiny, HALF, f"you are {n}", COMPACT) for n in range(3)]
    for chat in chats:
        chat.extend(DIALOGUE)
    one, two, three = ((chat.cache.memory_tensor, export_of(chat.dialogue)) for chat in chats)
    theirs, litter = tmp_path / "model.safetensors", tmp_path / f".{'0' * 64}.safetensors.7-7.tmp"

    async def use() -> None:
        exports = Exports(str(tmp_path), ttl=3600, limit=1)
        theirs.write_bytes(b"weights")
        async with exports.using(*one) as first:
            async with exports.using(*two) as second, exports.using(*two) as again:
                assert second is again
                exports.sweep()
                assert first.path.exists()
                assert second.path.exists()
            async with exports.using(*one):  # what was used before is let go by now
                exports.sweep()
            assert first.path.exists()
            assert not second.path.exists()
            async with exports.using(*two) as third:  # it is written again
                assert third.path.exists()
        exports.close()
        exports = Exports(str(tmp_path), ttl=3600, limit=1 << 30)  # without a limit the old ones go
        litter.touch()
        exports.prepare(*three)
        async with exports.using(*three) as third:
            pass
        for path in (first.path, theirs, litter):
            os.utime(path, (0, 0))
        exports.sweep()
        assert not first.path.exists()
        assert not litter.exists()
        assert second.path.exists()
        assert third.path.exists()
        os.utime(third.path, (0, 0))
        async with exports.using(*three) as again:
            pass
        exports.close()
        exports.sweep()  # it has just been used
        assert again.path.exists()

    asyncio.run(use())
    assert theirs.exists()


def test_a_reply_that_is_decoded_elsewhere_in_parts_is_the_sessions_own(tiny: SonicModel) -> None:
    """What `VllmEngine` does when the open segment is full in the middle of a reply."""
    most = 100
    chat = ChatSession(tiny, HALF, "be brief", COMPACT)
    chat.extend(DIALOGUE)
    expected = chat.fork().send("so?", SamplingConfig(max_new_tokens=most))
    assert expected.usage.completion_tokens == most
    chat.extend([user("so?")])
    draft = chat.dialogue.copy()
    token = run(tiny, draft.begin_draft())
    segments, written = draft.cache.lengths.segments, list[int]()
    while len(written) < most:
        elsewhere, part, size = (
            draft.copy().cache,
            [token],
            COMPACT.max_segment_tokens - draft.cache.open_length,
        )
        for _ in range(min(size, most - len(written))):
            part.append(int(tiny.feed(elsewhere, part[-1:]).argmax()))
        run(tiny, draft.feed(part[:-1], slice_tokens=16))
        run(tiny, draft.close_if_full())
        token = part[-1]
        written += part[1:]
    assert detokenize(tiny.tokenizer, written) == expected.text
    assert draft.cache.lengths.segments > segments


# --- with vLLM ----------------------------------------------------------------------------------
#
# The model is random and never ends a reply by itself: what a test needs to happen is said to it.


@dataclass
class Upstream:
    """A vLLM server that can be stopped and started again at the same address."""

    model: Path
    folder: Path  # of exports

    def __post_init__(self) -> None:
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.running = False
        self._stack = ExitStack()

    def start(self, connector: bool = True) -> None:
        self.http = self._stack.enter_context(vllm_server(self.model, self.folder, self.port, connector))
        self.running = True

    def stop(self) -> None:
        self.running = False
        self._stack.close()

    def figure(self, name: str) -> float:
        """One of its metrics."""
        found = re.search(rf"^vllm:{name}{{.*}} (.*)$", self.http.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model."""
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(folder: Path) -> SonicModel:
    """The gateway's."""
    return make_model("qwen3", folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SonicModel:
    """The same model once more: the gateway's belongs to the gateway's thread."""
    return make_model("qwen3", tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def server(model: SonicModel, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    server = Upstream(folder, tmp_path_factory.mktemp("exports"))
    yield server
    server.stop()


@pytest.fixture
def upstream(server: Upstream) -> Upstream:
    """It runs, whatever the test before made of it."""
    if not server.running:
        server.start()
    return server


def own(model: SonicModel, messages: Sequence[dict[str, str]], sampling: SamplingConfig) -> Reply:
    """What a session of its own replies to the last message."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    chat = ChatSession(model, HALF, system, COMPACT)
    history = messages[system is not None : -1]
    if history:
        chat.extend(history)
    return chat.send(messages[-1]["content"], sampling)


def converse(server: Served, messages: list[dict[str, str]], texts: Sequence[str], **more: Any) -> None:
    for text in texts:
        messages.append(user(text))
        messages.append(assistant(server.reply(messages, max_tokens=NEW, **more)))


def check(model: SonicModel, messages: Sequence[dict[str, str]]) -> None:
    """Every reply is the session's own."""
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            assert (
                message["content"] == own(model, messages[:number], SamplingConfig(max_new_tokens=NEW)).text
            )


def wait_until(reached: Callable[[], bool]) -> None:
    """Return when it is so."""
    end = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def leave(server: Served, upstream: Upstream) -> Iterator[str]:
    """The events of a long reply that vLLM is in the middle of."""
    body = {"model": "tiny", "messages": [user("go on")], "max_tokens": LONG, "stream": True}
    before = upstream.figure("generation_tokens_total")
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = filter(None, response.iter_lines())
        for _ in range(3):
            yield next(lines)
        # a count that only grows: what runs at a moment can be missed
        wait_until(lambda: upstream.figure("generation_tokens_total") > before)
        yield from lines


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
@pytest.mark.filterwarnings("ignore")  # vLLM's own
class TestWithVllm:
    def test_dialogues_at_once_are_each_the_sessions_own(
        self, upstream: Upstream, model: SonicModel, other: SonicModel, tmp_path: Path
    ) -> None:
        dialogues: list[list[dict[str, str]]] = [[], [{"role": "system", "content": "be brief"}], []]
        with gateway(model, upstream.url, upstream.folder) as server:
            assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] == other.max_length

            def talk(number: int) -> None:
                name = {"x-session-id": f"number-{number}"}
                converse(
                    server, dialogues[number], [f"{text} ({number})" for text in TEXTS[:6]], headers=name
                )

            with ThreadPoolExecutor(3) as pool:
                list(pool.map(talk, range(3)))
            assert server.worker.counts["made"] == 3  # every later turn went on from the one before
            session = [server.http.get(f"/v1/sessions/number-{n}").json() for n in range(3)]
            # vLLM's length is the limit now
            assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] == LENGTH
        assert upstream.figure("external_prefix_cache_hits_total") > 0
        for one, messages in zip(session, dialogues, strict=True):
            assert all(
                len(message["content"]) == NEW for message in messages if message["role"] == "assistant"
            )
            # an exchange is longer than a segment, so that replies went on behind segments that were full
            assert max(part["tokens"] for part in one["segments"]) == COMPACT.max_segment_tokens
            check(other, messages)
        alone = dialogues[1][:1]
        with serving(model, config=COMPACT) as server:
            converse(server, alone, [f"{text} (1)" for text in TEXTS[:6]])
        assert alone == dialogues[1]

    def test_a_gateway_that_is_restarted_goes_on(
        self, upstream: Upstream, model: SonicModel, other: SonicModel, tmp_path: Path
    ) -> None:
        messages: list[dict[str, str]] = []
        for texts in (TEXTS[:3], TEXTS[3:6]):
            with gateway(model, upstream.url, upstream.folder, tmp_path) as server:
                converse(server, messages, texts)
                restored = server.worker.counts["restored"]
        assert restored == 1
        with serving(model, tmp_path, config=COMPACT) as server:  # and a server without vLLM goes on too
            converse(server, messages, TEXTS[6:8])
            assert server.worker.counts["restored"] == 1
        check(other, messages)

    def test_options_and_usage_are_those_of_a_server_without_vllm(
        self, upstream: Upstream, model: SonicModel, other: SonicModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        messages: list[dict[str, str]] = []
        drawn = {"max_tokens": 20, "temperature": 1.5, "seed": 7}
        with (
            gateway(model, upstream.url, upstream.folder) as ours,
            serving(other, config=COMPACT) as alone,
        ):
            converse(ours, messages, TEXTS[:4])
            converse(alone, [], TEXTS[:4])
            messages.append(user(TEXTS[4]))
            text = ours.reply(messages, max_tokens=NEW)
            asked: list[tuple[dict[str, Any], str]] = [
                ({"max_tokens": NEW, "stop": [text[-1] + "never", text[20:23]]}, "stop"),
                ({"max_tokens": 3}, "length"),
                ({"max_tokens": NEW, "temperature": 0.0, "top_p": 0.5}, "length"),
            ]
            for options, reason in asked:
                assert reason == same(messages, options, ours, alone)
            first, second = (ours.reply(messages, **drawn) for _ in range(2))
            assert first == second != ours.reply(messages, **{**drawn, "seed": 8})
            (end,) = model.tokenizer.encode(text[10], add_special_tokens=False)
            for one in (model, other):  # a reply that the model ends
                monkeypatch.setattr(one.base.generation_config, "eos_token_id", end)
            assert same(messages, {"max_tokens": NEW}, ours, alone) == "stop"

    def test_it_is_asked_as_a_server_without_vllm_is(
        self, upstream: Upstream, model: SonicModel, tmp_path: Path
    ) -> None:
        with gateway(model, upstream.url, upstream.folder, tmp_path) as server:
            check_front(server.http)

    def test_a_client_that_leaves_stops_vllm(self, upstream: Upstream, model: SonicModel) -> None:
        before = upstream.figure("generation_tokens_total")
        with gateway(model, upstream.url, upstream.folder) as server:
            with closing(leave(server, upstream)) as events:
                assert [json.loads(next(events).removeprefix("data: ")) for _ in range(4)]
            wait_until(lambda: server.worker.gauges()["rows_decoding"] == 0)  # so no part of it is asked for
            wait_until(lambda: upstream.figure("num_requests_running") == 0)
            assert upstream.figure("generation_tokens_total") < before + LONG

    def test_a_foreign_model_or_folder_is_refused(
        self, upstream: Upstream, tiny: SonicModel, model: SonicModel, tmp_path: Path
    ) -> None:
        for one, exports, reason in [
            (tiny, upstream.folder, "made for another model"),
            (model, tmp_path, "does not exist"),
        ]:
            with gateway(one, upstream.url, exports) as server:
                answer = server.chat([user("hi")])
            assert answer.status_code == 502
            assert reason in answer.json()["error"]["message"]

    def test_a_vllm_that_goes_away_and_comes_back_loses_nothing(
        self, upstream: Upstream, model: SonicModel, other: SonicModel, tmp_path: Path
    ) -> None:
        messages: list[dict[str, str]] = []
        with gateway(model, upstream.url, upstream.folder, tmp_path) as server:

            def refused(reason: str) -> None:
                answer = server.chat([*messages, user("so?")], max_tokens=NEW)
                assert answer.status_code == 502
                assert reason in answer.json()["error"]["message"]

            converse(server, messages, TEXTS[:3], headers={"x-session-id": "ada"})
            upstream.stop()
            upstream.start(connector=False)  # at the same address, one that knows nothing of sessions
            refused("runs without sonic-kv's connector")
            upstream.stop()
            for _ in range(2):
                refused("cannot be reached")
            assert server.http.get("/v1/sessions/ada").json()["messages"] == messages
            upstream.start()
            converse(server, messages, TEXTS[3:6], headers={"x-session-id": "ada"})
            assert server.worker.counts["made"] == 1  # the session itself was never lost
            events = leave(server, upstream)
            for _ in range(4):
                next(events)
            upstream.stop()
            cut = [json.loads(line.removeprefix("data: ")) for line in events]
            assert cut[-1]["error"]["code"] == "upstream_failed"
            refused("cannot be reached")
        check(other, messages)


def same(messages: list[dict[str, str]], options: dict[str, Any], *servers: Served) -> str:
    """Ask two servers, which must answer the same, streamed and in one piece; why the reply ended."""
    for more in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
        found, expected = (strip(server.chat(messages, **options, **more)) for server in servers)
        assert found == expected
    reasons = [choice["finish_reason"] for event in found for choice in event["choices"]]
    return str(next(filter(None, reasons)))


def strip(response: httpx.Response) -> Any:
    """An answer or its events, without what names it."""
    assert response.status_code == 200, response.text
    texts = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return json.loads(
        json.dumps([json.loads(text) for text in texts if text != "[DONE]"]),
        object_hook=lambda found: {
            k: v for k, v in found.items() if k not in ("id", "created", "session_id")
        },
    )
