"""Laws of the store, on every kind of it: a folder, an fsspec URL, a real Redis."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, assistant, fresh, serving, user
from tiny import tiny_model

from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ConfigError, StoreError
from sonic_kv.model.model import SonicModel
from sonic_kv.server.run import listen
from sonic_kv.server.store import Store, open_store
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

KEYS = [letter * 64 for letter in "abc"]
TEXTS = ["my sister Ada lives in Oslo", "the door code is 4711, keep it", "hi", "where does Ada live?"]
NAMED = {"x-session-id": "keeper"}


@dataclass
class Redis:
    """A real server of its own, without persistence."""

    url: str
    start: Callable[[], None]
    stop: Callable[[], None]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        options = ["--port", str(port), "--save", "", "--dir", str(tmp_path), "--bind", "127.0.0.1"]
        running.append(subprocess.Popen([program, *options], stdout=subprocess.DEVNULL))
        import redis as client

        for _ in range(500):
            try:
                client.Redis(port=port).ping()
                return
            except client.RedisError:
                time.sleep(0.01)
        raise AssertionError("redis-server does not answer")

    def stop() -> None:
        running[-1].kill()
        running[-1].wait()

    start()
    yield Redis(f"redis://127.0.0.1:{port}/0", start, stop)
    stop()


@pytest.fixture(params=["folder", "memory", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis").url)
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}"


def opened(url: str, ttl: float = 100.0, limit: int = 1 << 20) -> Store:
    store = open_store(url, ttl, limit)
    assert store is not None
    return store


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


# --- blobs --------------------------------------------------------------------------------------


def test_a_store_gives_back_what_was_written_last(url: str) -> None:
    store = opened(url)
    assert store.read(KEYS[0]) is None
    store.write(KEYS[0], b"one")
    store.write(KEYS[0], b"two")
    store.write(KEYS[1], b"\0" * 1000)
    assert store.read(KEYS[0]) == b"two"
    assert opened(url).read(KEYS[1]) == b"\0" * 1000  # another process would see it too
    assert store.first([KEYS[2], KEYS[1], KEYS[0]]) == KEYS[1]
    assert store.first([]) is None
    store.delete(KEYS[0])
    store.delete(KEYS[0])
    assert store.read(KEYS[0]) is None


def test_a_store_forgets_the_oldest_of_what_is_too_much(url: str) -> None:
    store = opened(url, limit=2500)
    for key in KEYS:
        store.write(key, b"x" * 1000)
        time.sleep(0.02)
    assert store.sweep() == 2000
    assert [store.read(key) is not None for key in KEYS] == [False, True, True]


def test_a_store_forgets_what_is_too_old(url: str) -> None:
    store = opened(url, ttl=0.2)
    store.write(KEYS[0], b"x")
    time.sleep(0.3)
    store.write(KEYS[1], b"y")
    assert store.sweep() == 1
    assert store.read(KEYS[0]) is None
    assert store.read(KEYS[1]) == b"y"


def test_a_folder_is_its_owners_alone(tmp_path: Path) -> None:
    opened(str(tmp_path / "store"))
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("url", ["nonsense://x", "redis://host:port"])
def test_a_store_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        opened(url)


def test_a_store_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in ("redis://127.0.0.1:1/0", str(tmp_path / "file" / "folder")):
        with pytest.raises(StoreError):
            opened(url)


# --- sessions -----------------------------------------------------------------------------------


def converse(server: Served, model: SonicModel, messages: list[dict[str, str]], texts: list[str]) -> None:
    for text in texts:
        messages.append(user(text))
        reply = server.reply(messages, headers=NAMED)
        assert reply == fresh(messages)
        messages.append(assistant(reply))


def test_a_session_goes_on_after_a_restart_as_if_there_had_been_none(url: str, model: SonicModel) -> None:
    messages: list[dict[str, str]] = []
    for first, part in ((True, TEXTS[:2]), (False, TEXTS[2:])):
        with serving(model, url) as server:
            if messages:
                assert server.http.get("/v1/sessions/keeper").json()["messages"] == messages
            converse(server, model, messages, part)
            assert server.worker.counts["made"] == (1 if first else 0)  # never fed again


@pytest.mark.parametrize("store_after", [0.0, 1e6])
def test_replicas_on_one_store_go_on_with_each_others_sessions(
    tmp_path: Path, model: SonicModel, store_after: float
) -> None:
    another = tiny_model(max_position_embeddings=2048)
    same: dict[str, Any] = {"engine": "ray", "store_after": store_after}
    with serving(model, tmp_path, **same) as one, serving(another, tmp_path, **same) as two:
        messages: list[dict[str, str]] = []
        converse(one, model, messages, TEXTS[:1])
        converse(two, model, messages, TEXTS[1:3])
        time.sleep(0.3)
        assert one.http.get("/v1/sessions/keeper").json()["messages"] == messages  # not what it had itself
        converse(one, model, messages, TEXTS[3:])
        assert bool(one.worker.counts["restored"]) == (store_after == 0.0)  # or fed again, to the same end
        changed = two.http.patch("/v1/sessions/keeper", json={"compression_ratio": 0.9}).json()
        assert one.http.get("/v1/sessions/keeper").json() == changed
        answer = one.chat([*messages, user("so?")], headers=NAMED).json()
        assert answer["usage"]["sonic"]["compression_ratio"] == 0.9


def test_a_record_alone_brings_the_same_session_back(tmp_path: Path, model: SonicModel) -> None:
    with serving(model, tmp_path, store_after=1e6) as server:
        messages: list[dict[str, str]] = []
        converse(server, model, messages, TEXTS[:3])
        before = server.http.patch("/v1/sessions/keeper", json={"compression_ratio": 0.8}).json()
    for path in tmp_path.rglob("*.safetensors"):
        if path.stat().st_size > 8000:
            path.unlink()  # the caches, which the server wrote when it stopped
    with serving(model, tmp_path) as server:
        again = server.http.get("/v1/sessions/keeper").json()
        assert server.worker.counts["made"] == 1
        assert {**again, "bytes": 0, "saved": 0} == {**before, "bytes": 0, "saved": 0}


@pytest.mark.parametrize("damage", ["truncate", "flip", "swap"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, model: SonicModel, damage: str) -> None:
    messages: list[dict[str, str]] = []
    with serving(model, tmp_path) as server:
        converse(server, model, messages, TEXTS[:2])
    files = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-5] ^= 1
    else:
        data = bytearray(files[0].read_bytes())
    files[-1].write_bytes(data)
    with serving(model, tmp_path) as server:
        converse(server, model, messages, TEXTS[2:3])
        assert server.worker.counts["made"] == 1


def test_idle_sessions_are_written_and_old_states_deleted(tmp_path: Path, model: SonicModel) -> None:
    with serving(model, tmp_path, store_after=0.0) as server:
        messages: list[dict[str, str]] = []
        for text in TEXTS:
            converse(server, model, messages, [text])
            time.sleep(0.3)
        files = list(tmp_path.rglob("*.safetensors"))
        assert len(files) <= 3  # the record, the state now, and the one before
        assert len(server.worker.shelf) == 2


def test_memory_stays_below_its_limit_and_no_answer_changes(tmp_path: Path, model: SonicModel) -> None:
    with serving(model, tmp_path, kv_memory="900kB", max_batch=3) as server:
        most = watch_memory(server)
        dialogues: list[list[dict[str, str]]] = [[user(f"{n}: {TEXTS[0]}")] for n in range(30)]
        for text in TEXTS[1:]:
            threads = [threading.Thread(target=answer, args=(server, one, text)) for one in dialogues]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for messages in dialogues[::6]:
            for number, message in enumerate(messages):
                if message["role"] == "assistant":
                    assert message["content"] == fresh(messages[:number])
        assert server.worker.counts["evicted"] > 30
        assert server.worker.counts["restored"] > 0
        assert 400_000 < max(most) <= 900_000


def answer(server: Served, messages: list[dict[str, str]], text: str) -> None:
    messages.append(assistant(server.reply(messages)))
    messages.append(user(text))


def watch_memory(server: Served) -> list[int]:
    """Bytes of all storages that hold keys and values, each once, after every step of the engine."""
    worker, found, step = server.worker, [0], server.worker.engine.step

    def caches() -> Iterator[Any]:
        yield from (node.session.cache for node in worker.shelf)
        yield from worker.engine.caches()
        yield from (turn.session.cache for turn in worker._jobs if turn.session is not None)

    def measured() -> bool:
        busy = step()
        storages = {}
        for cache in caches():
            for layer in cache.layers:
                for tensor in layer.tensors()[:2]:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
        found.append(sum(storages.values()))
        return busy

    worker.engine.step = measured  # type: ignore[method-assign]
    return found


def test_a_dialogue_that_can_never_fit_is_refused(model: SonicModel) -> None:
    with serving(model, kv_memory="200kB") as server:
        response = server.chat([user("word " * 200)])
        assert response.status_code == 413
        assert "shorten" in response.json()["error"]["message"]
        assert server.chat([user("hi")], max_tokens=4).status_code == 200


def test_a_name_that_nobody_has_costs_the_others_nothing(tmp_path: Path, model: SonicModel) -> None:
    with serving(model, tmp_path, kv_memory="200kB", keys=("one", "two")) as server:
        messages = [user(TEXTS[0])]
        messages.append(assistant(server.reply(messages, headers=NAMED)))
        held = len(server.worker.shelf)
        for name, key in (("keeper", "two"), ("nobody", "one")):
            headers = {"authorization": f"Bearer {key}"}
            assert server.http.get(f"/v1/sessions/{name}", headers=headers).status_code == 404
        assert len(server.worker.shelf) == held == 1
        assert server.worker.counts["evicted"] == 0
        assert server.http.get("/v1/sessions/keeper").json()["messages"] == messages


def test_a_named_session_that_left_memory_is_found_again(tmp_path: Path, model: SonicModel) -> None:
    with serving(model, tmp_path, kv_memory="150kB", max_batch=1) as server:
        messages = [user(TEXTS[0])]
        messages.append(assistant(server.reply(messages, headers=NAMED)))
        for number in range(8):
            server.reply([user(f"{number}: " + TEXTS[1])])
        assert server.worker.counts["evicted"] > 0
        assert server.http.get("/v1/sessions/keeper").json()["messages"] == messages
        changed = server.http.patch("/v1/sessions/keeper", json={"compression_ratio": 0.9}).json()
        assert changed["compression_ratio"] == 0.9


def test_under_pressure_idle_sessions_may_shrink_first(model: SonicModel) -> None:
    with serving(model, kv_memory="600kB", max_batch=1, pressure_ratio=0.9) as server:
        for number in range(20):
            server.reply([user(f"{number}: " + TEXTS[0] * 4)])
        assert server.worker.counts["pressed"] > 0
        assert any(node.pressed for node in server.worker.shelf)


# --- faults -------------------------------------------------------------------------------------


def test_while_the_store_is_gone_turns_are_refused_and_then_go_on(redis: Redis, model: SonicModel) -> None:
    messages: list[dict[str, str]] = []
    with serving(model, redis.url) as server:
        converse(server, model, messages, TEXTS[:2])
        redis.stop()
        refused = server.chat([*messages, user(TEXTS[2])], headers=NAMED)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "store" in refused.json()["error"]["message"]
        redis.start()
        converse(server, model, messages, TEXTS[2:])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_and_survived(small_disk: Path, model: SonicModel) -> None:
    messages: list[dict[str, str]] = []
    filler = small_disk / "filler"
    with serving(model, small_disk / "store") as server:
        converse(server, model, messages, TEXTS[:1])
        with open(filler, "wb", buffering=0) as file, suppress(OSError):
            while True:  # until there is no room
                file.write(b"x" * 4096)
        refused = server.chat([*messages, user(TEXTS[1])], headers=NAMED)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "No space left" in refused.json()["error"]["message"]
        filler.unlink()
        converse(server, model, messages, TEXTS[1:])
    with serving(model, small_disk / "store") as server:
        assert server.http.get("/v1/sessions/keeper").json()["messages"] == messages


# `sonic-kv serve` that kills itself in the middle of something, once a file is there.
DEADLY = """
import os, signal, sys
from pathlib import Path
from sonic_kv.cli import main as cli
from sonic_kv.compress import compressor
from sonic_kv.session import engine

trigger, moment = Path(sys.argv[1]), sys.argv[2]

def die():
    if trigger.exists():
        os.kill(os.getpid(), signal.SIGKILL)

step, closing, replace = engine.batch_step, compressor.Compressor.closing, os.replace

def deadly_step(base, caches, *arguments):
    if max(cache.stored for cache in caches) > 20:
        die()
    return step(base, caches, *arguments)

def deadly_closing(self, *arguments):
    for number, _ in enumerate(closing(self, *arguments)):
        yield
        if number == 1:
            die()

def deadly_replace(*arguments):
    die()
    replace(*arguments)

if moment == "decoding":
    engine.batch_step = deadly_step
elif moment == "closing":
    compressor.Compressor.closing = deadly_closing
else:
    os.replace = deadly_replace
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_a_killed_server_has_lost_no_acknowledged_turn(tmp_path: Path) -> None:
    model = SonicModel.from_pretrained("tiny")
    messages: list[dict[str, str]] = []
    trigger = tmp_path / "trigger"
    arguments = [
        "serve",
        "--model",
        "tiny",
        "--port",
        "0",
        "--store",
        str(tmp_path / "s"),
        "--min-segment-tokens",
        "16",
    ]

    def body(text: str) -> dict[str, Any]:
        return {"model": "tiny", "messages": [*messages, user(text)], "max_tokens": 24}

    for text, moment in zip(TEXTS, ("decoding", "closing", "writing", "decoding"), strict=True):
        process, url = run_server(["-c", DEADLY, str(trigger), moment, *arguments])
        try:
            with httpx.Client(base_url=url, timeout=60, headers=NAMED) as http:
                if messages:
                    assert http.get("/v1/sessions/keeper").json()["messages"] == messages
                reply = http.post("/v1/chat/completions", json=body(text)).json()["choices"][0]["message"]
                messages += [user(text), assistant(reply["content"])]
                trigger.touch()
                with pytest.raises(httpx.TransportError):
                    http.post("/v1/chat/completions", json=body("go on " * 20))
            assert process.wait() == -signal.SIGKILL
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
            trigger.unlink()
    config = SessionConfig(min_segment_tokens=16)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            chat = ChatSession(model, Budget(compression_ratio=0.8), config=config)
            if number > 1:
                chat.extend(messages[: number - 1])
            expected = chat.send(messages[number - 1]["content"], SamplingConfig(max_new_tokens=24))
            assert message["content"] == expected.text


def run_server(arguments: list[str]) -> tuple["subprocess.Popen[str]", str]:
    """A process of Python that serves, and where it listens."""
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if " at http" in line:
            url = line.split(" at ")[1].split()[0]
            for _ in range(500):
                try:
                    if httpx.get(f"{url}/healthz").status_code == 200:
                        return process, url
                except httpx.TransportError:
                    time.sleep(0.02)
    raise AssertionError("the server did not start")
