"""Laws of the store, on every kind of it: a folder, an fsspec URL, a real Redis."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import Served, assistant, fresh, serving, user
from tiny import tiny_model

from sonic_kv.cli.main import main
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ConfigError, StoreError
from sonic_kv.files import seal, unseal
from sonic_kv.model.model import SonicModel
from sonic_kv.server.access import Access
from sonic_kv.server.dialogue import owner_of
from sonic_kv.server.run import listen, open_store
from sonic_kv.server.store import Limits, Name, Store
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

NAMES = [Name("0" * 32, "dialogue", letter * 64) for letter in "abc"]
TEXTS = ["my sister Ada lives in Oslo", "the door code is 4711, keep it", "hi", "where does Ada live?"]
NAMED = {"x-session-id": "keeper"}


@dataclass
class Redis:
    """A real server of its own, without persistence."""

    url: str
    start: Callable[[], None]
    stop: Callable[[], None]
    send: Callable[[int], None]


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
    yield Redis(f"redis://127.0.0.1:{port}/0", start, stop, lambda number: running[-1].send_signal(number))
    stop()


@pytest.fixture(params=["folder", "memory", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis").url)
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}"


def opened(url: str, ttl: float = 100.0, limit: int = 1 << 20, per_owner: int | None = None) -> Store:
    store = open_store(url, Limits(ttl, limit, per_owner))
    assert store is not None
    return store


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


# --- blobs --------------------------------------------------------------------------------------


def test_a_store_gives_back_what_was_written_last(url: str) -> None:
    store = opened(url)
    assert store.read(NAMES[0]) is None
    store.write(NAMES[0], b"one")
    store.write(NAMES[0], b"two")
    store.write(NAMES[1], b"\0" * 1000)
    assert store.read(NAMES[0]) == b"two"
    assert opened(url).read(NAMES[1]) == b"\0" * 1000  # another process would see it too
    assert store.first([NAMES[2], NAMES[1], NAMES[0]]) == NAMES[1]
    assert store.first([]) is None
    assert sorted((entry.name, entry.nbytes) for entry in store.entries()) == [
        (NAMES[0], 3),
        (NAMES[1], 1000),
    ]
    store.delete(NAMES[0])
    store.delete(NAMES[0])
    assert store.read(NAMES[0]) is None


def test_a_store_forgets_the_oldest_of_what_is_too_much(url: str) -> None:
    store = opened(url, limit=2500)
    for name in NAMES:
        store.write(name, b"x" * 1000)
        time.sleep(0.02)
    assert store.sweep() == 2000
    assert [store.read(name) is not None for name in NAMES] == [False, True, True]


def test_caches_go_before_dialogues_and_who_has_too_much_loses_only_own(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(url, limit=4500, per_owner=3500)
    for owner in "ab":
        for number in range(2):
            for kind in ("dialogue", "cache"):
                store.write(Name(owner * 32, kind, str(number) * 64), b"x" * 1000)  # type: ignore[arg-type]
                time.sleep(0.02)
    assert store.sweep(lambda name: "never") == 4000
    assert {entry.name.kind for entry in store.entries()} == {"dialogue"}
    assert "never" not in caplog.text
    store.write(Name("a" * 32, "dialogue", "2" * 64), b"x" * 2000)
    assert store.sweep(lambda name: f"<{name.owner[:1]}{name.key[:1]}>") == 5000 - 1000
    assert "<a0> is forgotten: its key has no more room" in caplog.text
    assert store.make_room(1) is False


def test_a_store_forgets_what_is_too_old(url: str) -> None:
    for ttl in (0.2, 2.0, 20.0):
        store = opened(url, ttl=ttl)
        store.write(NAMES[0], b"x")
        time.sleep(1.5 * ttl)
        start = time.monotonic()
        store.write(NAMES[1], b"y")
        found = store.sweep(), store.read(NAMES[0]), store.read(NAMES[1])
        if time.monotonic() - start < ttl:  # else the machine was busy elsewhere
            break
    assert found == (1, None, b"y")


def test_a_clock_that_jumps_makes_nothing_old(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, clock = opened(url), time.time
    store.write(NAMES[0], b"x")
    store.sweep()
    for years in (1, -1, 30):
        monkeypatch.setattr(time, "time", lambda years=years: clock() + years * 365 * 86400.0)
        assert store.sweep() == 1
    assert "the clock jumped by 31536000 s" in caplog.text


def test_what_is_not_the_stores_own_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    others = [
        folder / "thesis.txt",
        folder / "weights.safetensors",
        folder / "ab" / f"{'c' * 64}.safetensors",
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 5000)
        os.utime(path, (0, 0))
    with pytest.raises(ConfigError, match="holds other files"):
        opened(str(folder))
    assert sorted(folder.rglob("*")) == sorted([*others, folder / "ab"])
    store = open_store(str(folder), Limits(ttl=1.0, nbytes=1), beside_others=True)
    assert store is not None
    inside = folder / "sonic-kv-store" / "notes.safetensors"
    inside.write_bytes(b"mine")
    os.utime(inside, (0, 0))
    store.write(NAMES[0], b"xx")
    assert store.sweep() == 0
    assert all(path.exists() for path in [*others, inside])
    assert folder.stat().st_mode & 0o777 == 0o755
    opened(str(folder))  # it knows its own again


def test_what_is_refused_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["serve", "--model", str(tmp_path / "nowhere"), "--store", str(tmp_path)]) != 0
    assert "holds other files" in capsys.readouterr().err


def test_a_subfolder_that_somebody_else_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sonic-kv-store").mkdir()
    (tmp_path / "sonic-kv-store" / "x").write_text("")
    with pytest.raises(ConfigError, match="not sonic-kv's"):
        open_store(str(tmp_path), Limits(1.0, 1), beside_others=True)


def test_a_folder_is_its_owners_alone_also_when_it_comes_back(tmp_path: Path) -> None:
    store = opened(str(tmp_path / "a" / "store"))
    for _ in range(2):
        store.write(NAMES[0], b"x")
        for path in (tmp_path / "a").rglob("*"):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
        shutil.rmtree(tmp_path / "a")


def test_two_servers_do_not_use_one_folder(tmp_path: Path) -> None:
    one, two = opened(str(tmp_path)), opened(str(tmp_path))
    one.lock(shared=False)
    with pytest.raises(ConfigError, match=r"another server .* with --store"):
        two.lock(shared=False)
    one.close()
    two.lock(shared=True)
    one.lock(shared=True)
    one.close()
    two.close()


@pytest.mark.parametrize("url", ["nonsense://x", "redis://host:port"])
def test_a_store_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        opened(url)


def test_a_store_that_cannot_be_reached_is_refused_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in ("redis://127.0.0.1:1/0", str(tmp_path / "file" / "folder")):
        with pytest.raises(StoreError) as error:
            opened(url)
        assert str(tmp_path) not in str(error.value)


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
        one.http.get("/v1/sessions/keeper")  # both have it in memory, and each may write it
        assert two.http.delete("/v1/sessions/keeper").status_code == 200
        for replica in (one, two):
            assert replica.http.get("/v1/sessions").json()["data"] == []
            assert replica.http.get("/v1/sessions/keeper").status_code == 404
    assert not list(tmp_path.rglob("*.safetensors"))


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


OTHER = {"authorization": "Bearer two"}


def test_whoever_holds_most_memory_gives_way(model: SonicModel) -> None:
    with serving(model, kv_memory="150kB", keys=("one", "two"), max_batch=1) as server:
        messages = [user(TEXTS[0])]
        messages.append(assistant(server.reply(messages, headers=OTHER)))  # used longest ago
        for number in range(20):
            server.reply([user(f"{number}: " + TEXTS[1])])
        assert server.worker.counts["evicted"] > 5
        made = server.worker.counts["made"]
        assert server.chat([*messages, user("and?")], headers=OTHER).status_code == 200
        assert server.worker.counts["made"] == made


def test_a_key_has_no_more_memory_than_its_share(model: SonicModel) -> None:
    mine, most = owner_of(Access(("one",)).namespace("Bearer one") or ""), [0]
    with (
        serving(
            model, keys=("one", "two"), kv_memory="4MiB", kv_memory_per_key="400kB", queue_timeout=600.0
        ) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        step = server.worker.engine.step

        def measured() -> bool:
            running = [job for job in server.worker._jobs.values() if owner_of(job.request.namespace) == mine]
            held = sum(job.session.cache.nbytes for job in running if job.session is not None)
            most.append(held + server.worker.shelf.bytes_of(mine))
            return step()

        server.worker.engine.step = measured  # type: ignore[method-assign]
        many = [pool.submit(server.chat, [user(f"{n}: {TEXTS[0]}")], max_tokens=100) for n in range(8)]
        while not server.worker._jobs:
            time.sleep(0.005)
        assert server.chat([user("hi")], max_tokens=2, headers=OTHER).status_code == 200
        assert not all(one.done() for one in many)  # those wait for each other, and nobody for them
        assert {one.result().status_code for one in many} == {200}
        assert 100_000 < max(most) <= 400_000
        refused = server.chat([user("word " * 400)])
        assert refused.status_code == 413
        assert "400 kB" in refused.json()["error"]["message"]


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


def test_while_redis_hangs_only_the_first_waits_and_who_needs_no_store_goes_on(
    redis: Redis, model: SonicModel
) -> None:
    with serving(model, redis.url) as server:
        messages = [user(TEXTS[0])]
        messages += [assistant(server.reply(messages, headers=NAMED)), user(TEXTS[1])]
        redis.send(signal.SIGSTOP)
        try:
            assert server.chat(messages, headers=NAMED).status_code == 503
            assert server.http.get("/readyz").status_code == 503
            assert server.http.get("/healthz").status_code == 200
            for _ in range(3):
                refused = server.chat(messages, headers=NAMED)
                assert refused.status_code == 503
                assert refused.elapsed.total_seconds() < 1.0  # none waits for Redis any more
                assert server.reply([user(TEXTS[2])]) == fresh([user(TEXTS[2])])
        finally:
            redis.send(signal.SIGCONT)
        while server.http.get("/readyz").status_code != 200:
            time.sleep(0.1)
        assert server.reply(messages, headers=NAMED) == fresh(messages)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        None,
        5,
        [["user", "hi"]],
        [7.0, ["user", "hi"]],
        [0.5, ["nobody", "hi"]],
        [0.5],
        [0.5, {"a": 1}],
        [0.5, ["user"]],
        ["x"],
        [None],
    ],
)
def test_a_record_that_says_the_impossible_counts_as_missing(
    tmp_path: Path, model: SonicModel, steps: Any
) -> None:
    with serving(model, tmp_path) as server:
        server.reply([user("hi")], headers=NAMED)
        server.worker.shelf.drop(next(iter(server.worker.shelf)).key)
        (record,) = tmp_path.rglob("dialogues/*.safetensors")
        record.write_bytes(seal("dialogue", {"key": "x", "name": "keeper", "steps": steps}, {}))
        assert server.http.get("/v1/sessions/keeper").status_code == 404
        assert server.reply([user("hi"), assistant("yes"), user("so?")], headers=NAMED)


@pytest.mark.parametrize("change", ["lengths", "tokens", "shapes", "nan"])
def test_a_cache_that_says_the_impossible_is_made_again(
    tmp_path: Path, model: SonicModel, change: str
) -> None:
    messages: list[dict[str, str]] = []
    with serving(model, tmp_path) as server:
        converse(server, model, messages, TEXTS[:2])
    for path in tmp_path.rglob("caches/*.safetensors"):
        header, tensors = unseal(path.read_bytes(), "session", "cache")
        if change == "lengths":
            header["lengths"] = {"prefix": -5, "segment_starts": ["x"]}
        elif change == "tokens":
            tensors["token_ids"] = tensors["token_ids"][:1]
        elif change == "shapes":
            tensors = {name: tensor[..., :1] for name, tensor in tensors.items()}
        else:
            tensors = {
                name: tensor * torch.nan if tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            }
        path.write_bytes(seal("session", header, tensors))
    with serving(model, tmp_path) as server:
        messages.append(user(TEXTS[2]))
        statuses = [server.chat(messages, headers=NAMED).status_code for _ in range(2)]
        assert statuses[-1] == 200
        assert server.reply(messages, headers=NAMED) == fresh(messages)


def test_a_clients_mistake_costs_its_session_nothing(tmp_path: Path, model: SonicModel) -> None:
    """Neither its state in memory nor its cache on the store."""
    with serving(model, tmp_path) as server:
        converse(server, model, [], TEXTS[:2])
    (cache,) = tmp_path.rglob("caches/*.safetensors")
    with serving(model, tmp_path) as server:
        for _ in range(2):
            assert server.http.patch("/v1/sessions/keeper", json={"max_damage": 0.1}).status_code == 400
        assert cache.exists()
        assert server.http.patch("/v1/sessions/keeper", json={"compression_ratio": 0.5}).status_code == 200
        (there,) = server.worker.shelf
        assert server.http.patch("/v1/sessions/keeper", json={"max_damage": 0.1}).status_code == 400
        assert list(server.worker.shelf) == [there]


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


def test_on_a_full_disk_caches_give_way_to_dialogues(small_disk: Path, model: SonicModel) -> None:
    with serving(model, small_disk, store_after=0.0, store_beside_others=True) as server:
        for number in range(24):  # their caches alone are more than fits
            server.reply([user(f"{number}: {TEXTS[0] * 3}")], headers={"x-session-id": f"s{number}"})
            time.sleep(0.05)
        assert len(server.http.get("/v1/sessions").json()["data"]) == 24


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

step, closing, replace = engine.batch_step, compressor.Compressor.steps, os.replace

def deadly_step(base, caches, *arguments):
    if max(cache.stored for cache in caches) > 20:
        die()
    return step(base, caches, *arguments)

def deadly_closing(self, *arguments):
    for reading in closing(self, *arguments):
        yield reading
        die()

def deadly_replace(*arguments):
    die()
    replace(*arguments)

if moment == "decoding":
    engine.batch_step = deadly_step
elif moment == "closing":
    compressor.Compressor.steps = deadly_closing
else:
    os.replace = deadly_replace
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_a_killed_server_has_lost_no_acknowledged_turn(tmp_path: Path) -> None:
    model = SonicModel.from_pretrained("tiny")
    messages: list[dict[str, str]] = []
    trigger, config = tmp_path / "trigger", tmp_path / "serve.toml"
    config.write_text("[session]\nmin_segment_tokens = 16\n", encoding="utf-8")
    arguments = [
        "serve",
        "--model",
        "tiny",
        "--port",
        "0",
        "--store",
        str(tmp_path / "s"),
        "--config",
        str(config),
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
