"""vLLM over exported sessions, in float32 on a CPU: token for token what the session itself replies.

Run by `make test-vllm`, in a virtual environment of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, random_adapter, talkative, tiny_base, tiny_tokenizer

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel
from sonic_kv.cache.export import Export
from sonic_kv.errors import SonicError
from sonic_kv.model.loading import TINY

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]

BLOCK = 32
LENGTH = 2048  # tokens of a request
NEW = 20
STARTED = 400.0  # seconds that a server may take to start on a machine that does much else
OTHER = [dict(m, content=m["content"].replace("Oslo", "Rome").replace("4711", "2093")) for m in DIALOGUE]
QUESTION = "where does Ada live, and what was the door code?"
CONFIG = SessionConfig(positions="compact", closing="asked")
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # of `LLM`; `vllm serve` runs its engine in a process of its own
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
# `vllm serve`; it asks for the version of a package that has another name in the CPU build.
SERVE = """
import importlib.metadata as metadata, runpy
find = metadata.version
metadata.version = lambda name: find("vllm-cpu") + "+cpu" if name == "vllm" else find(name)
runpy.run_module("vllm.entrypoints.cli.main", run_name="__main__", alter_sys=True)
"""


@dataclass
class Engine:
    """A running vLLM engine, the same model here, and the folder between them."""

    model: SonicModel
    folder: Path
    llm: Any

    def ask(self, *requests: tuple[Sequence[int], Any], **options: Any) -> list[Any]:
        """One batch of (prompt, session); the completions."""
        from vllm import SamplingParams

        stop = sorted(self.model.stop_ids)
        sampling = [
            SamplingParams(
                temperature=0,
                max_tokens=NEW,
                stop_token_ids=stop,
                extra_args=None if session is None else {"kv_transfer_params": {"sonic_session": session}},
                **options,
            )
            for _, session in requests
        ]
        prompts = [{"prompt_token_ids": list(prompt)} for prompt, _ in requests]
        return [done.outputs[0] for done in self.llm.generate(prompts, sampling, use_tqdm=False)]


def make_model(family: str, folder: Path) -> SonicModel:
    """A random model that vLLM can load from `folder`. What it writes depends on all that it has read."""
    # vLLM's CPU kernel knows no smaller heads
    base = talkative(tiny_base(family, hidden_size=128, head_dim=32, max_position_embeddings=2 * LENGTH))
    tokenizer = tiny_tokenizer()
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SonicModel(base, tokenizer, random_adapter(base))


@pytest.fixture(scope="class", params=["qwen3", "llama"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    os.environ.update(ENVIRONMENT)
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    folder, path = tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("model")
    model = make_model(request.param, path)
    llm = LLM(
        str(path),
        dtype="float32",
        enforce_eager=True,
        block_size=BLOCK,
        max_model_len=LENGTH,
        max_num_seqs=16,
        distributed_executor_backend="uni",
        kv_transfer_config={
            "kv_connector": "SonicConnector",
            "kv_connector_module_path": "sonic_kv.integrations.vllm",
            "kv_role": "kv_consumer",
            "kv_connector_extra_config": {"folder": str(folder)},
        },
    )
    yield Engine(model, folder, llm)
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def talk(model: SonicModel, entries: int, dialogue: list[dict[str, str]] = DIALOGUE) -> ChatSession:
    """A session whose prefix and memory are `entries` entries, and that has an open segment."""
    chat = ChatSession(model, Budget(max_entries=entries), system="be brief", config=CONFIG)
    chat.extend(dialogue)
    assert chat.compress()
    assert chat.stats.prefix + chat.stats.memory == entries
    chat.extend([{"role": "user", "content": "hm"}, {"role": "assistant", "content": "yes?"}])
    return chat


def prompt_of(chat: ChatSession, export: Export, text: str = QUESTION) -> list[int]:
    opened = chat.token_ids[chat.cache.lengths.closed :]
    return export.token_ids + opened + chat.model.format.user(text) + chat.model.format.generation_prompt()


def reply_of(chat: ChatSession, text: str = QUESTION) -> list[int]:
    """Send `text`; the tokens of the session's own reply."""
    before = len(chat.token_ids) + len(chat.model.format.user(text) + chat.model.format.generation_prompt())
    reply = chat.send(text, SamplingConfig(max_new_tokens=NEW))
    return chat.token_ids[before:][: reply.usage.completion_tokens]


def greedy(model: SonicModel, prompt: list[int]) -> list[int]:
    """What the base replies to these tokens, with no cache of ours."""
    written: list[int] = []
    with torch.no_grad():
        while len(written) < NEW and not set(written) & model.stop_ids:
            written.append(int(model.base(torch.tensor([prompt + written])).logits[0, -1].argmax()))
    return written


class TestEngine:
    def test_vllm_replies_what_the_session_replies(self, engine: Engine) -> None:
        """Prefixes that fill blocks and that do not, in one batch; a second turn; a third, after a closing."""
        chats = [talk(engine.model, entries) for entries in (BLOCK, BLOCK + 1, 50, 2 * BLOCK)]
        chats.append(ChatSession(engine.model, system="be brief", config=CONFIG))  # nothing but a prefix
        exports = [chat.export(engine.folder) for chat in chats]
        assert prompt_of(chats[0], exports[0])[:-1] != exports[0].token_ids
        for text in (QUESTION, "are you sure?", "my brother is called Leo", "who is Leo?"):
            if text == "who is Leo?":
                assert all(chat.compress() for chat in chats[:-1])
                exports = [chat.export(engine.folder) for chat in chats]
            prompts = [prompt_of(chat, export, text) for chat, export in zip(chats, exports, strict=True)]
            digests = [export.digest for export in exports]
            replies = engine.ask(*zip(prompts, digests, strict=True))
            assert [list(reply.token_ids) for reply in replies] == [reply_of(chat, text) for chat in chats]

    def test_sessions_do_not_meet_in_the_prefix_cache(self, engine: Engine) -> None:
        chats = [talk(engine.model, 50, dialogue) for dialogue in (DIALOGUE, OTHER)]
        first, second = (chat.export(engine.folder) for chat in chats)
        prompt = prompt_of(chats[0], first)
        assert prompt == prompt_of(chats[1], second)
        own, other, plain = *(reply_of(chat) for chat in chats), greedy(engine.model, prompt)
        assert own != other != plain != own
        asked = [(None, plain), (first, own), (second, other), (first, own), (None, plain), (second, other)]
        for export, expected in asked:
            (reply,) = engine.ask((prompt, export and export.digest))
            assert list(reply.token_ids) == expected
        # what a client may give as its salt leads nowhere
        from vllm import SamplingParams

        salted = {"prompt_token_ids": prompt, "cache_salt": first.digest}
        sampling = SamplingParams(temperature=0, max_tokens=NEW, stop_token_ids=sorted(engine.model.stop_ids))
        (done,) = engine.llm.generate([salted], sampling, use_tqdm=False)
        assert list(done.outputs[0].token_ids) == plain
        # nor does asking not to use the prefix cache drop the session
        (reply,) = engine.ask((prompt, first.digest), skip_reading_prefix_cache=True)
        assert list(reply.token_ids) == own

    def test_a_request_without_its_session_fails_alone(self, engine: Engine) -> None:
        chat, neighbour = talk(engine.model, 50), talk(engine.model, BLOCK)
        export, good = chat.export(engine.folder), neighbour.export(engine.folder)
        prompt, well = prompt_of(chat, export), (prompt_of(neighbour, good), good.digest)
        damaged, truncated = (talk(engine.model, entries) for entries in (51, 52))
        spoilt = [one.export(engine.folder) for one in (damaged, truncated)]
        data = spoilt[0].path.read_bytes()
        spoilt[0].path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        spoilt[1].path.write_bytes(spoilt[1].path.read_bytes()[:1000])
        foreign = self.foreign(engine)
        refused: list[tuple[Sequence[int], Any]] = [
            (prompt, "0" * 64),
            (prompt, f"../{engine.folder.name}/{export.digest}"),
            (prompt, 7),
            (prompt, foreign.digest),
            (prompt_of(truncated, spoilt[1]), spoilt[1].digest),
            (prompt[1:], export.digest),
            (export.token_ids, export.digest),
            ([0], "0" * 64),
        ]
        expected = reply_of(neighbour)
        replies = engine.ask(well, *refused, (prompt_of(damaged, spoilt[0]), spoilt[0].digest), well)
        assert [reply.finish_reason for reply in replies[1:-1]] == ["error"] * (len(refused) + 1)
        assert [list(reply.token_ids) for reply in replies[1:-1]] == [[]] * (len(refused) + 1)
        assert [list(replies[i].token_ids) for i in (0, -1)] == [expected] * 2
        (reply,) = engine.ask((prompt, export.digest), prompt_logprobs=1)
        assert reply.finish_reason == "error"
        (reply,) = engine.ask((prompt, export.digest))  # the engine lives
        assert list(reply.token_ids) == reply_of(chat)

    @staticmethod
    def foreign(engine: Engine) -> Export:
        """An export of a model of the same shape with other weights."""
        with torch.no_grad():
            weight = engine.model.base.get_input_embeddings().weight
            before = weight[0, :2].clone()
            weight[0, :2] += 1
            try:
                return talk(engine.model, 50).export(engine.folder)
            finally:
                weight[0, :2] = before

    def test_the_reason_is_said(self, engine: Engine) -> None:
        from sonic_kv.integrations.vllm import Exports

        config = engine.llm.llm_engine.vllm_config
        exports, chat = Exports(config), talk(engine.model, 50)
        export = chat.export(engine.folder)
        prompt = prompt_of(chat, export)
        assert exports.base == engine.model.fingerprint()
        assert exports.admit(export.digest, prompt).token_ids == export.token_ids
        for session, ids, reason in [
            ("0" * 64, prompt, "does not exist"),
            ("../x", prompt, "is not the digest of an export"),
            (self.foreign(engine).digest, prompt, "was made for another model: weights"),
            (export.digest, prompt[1:], "the prompt must be the 50 tokens of session"),
        ]:
            with pytest.raises(SonicError, match=reason):
                exports.admit(session, ids)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra": {}}, 'needs {"folder"'),
        ({"groups": 2}, "cache differently"),
        ({"world_size": 2}, "tensor and pipeline parallel"),
        ({"policy": "recompute"}, "kv_load_failure_policy='fail'"),
    ],
)
def test_an_engine_that_cannot_load_sessions_does_not_start(change: dict[str, Any], reason: str) -> None:
    from sonic_kv.integrations.vllm import KVConnectorRole, SonicConnector

    transfer = SimpleNamespace(
        kv_load_failure_policy=change.get("policy", "fail"),
        kv_connector_extra_config=change.get("extra", {"folder": "x"}),
    )
    config = SimpleNamespace(
        kv_transfer_config=transfer,
        parallel_config=SimpleNamespace(world_size=change.get("world_size", 1)),
        cache_config=SimpleNamespace(block_size=16),
        model_config=None,
    )
    groups = SimpleNamespace(kv_cache_groups=[None] * change.get("groups", 1))
    with pytest.raises(SonicError, match=reason):
        SonicConnector(config, KVConnectorRole.WORKER, groups)


def wait_for(client: Any, server: subprocess.Popen[bytes]) -> None:
    """Return when the server answers."""
    import httpx

    end = time.monotonic() + STARTED
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended"
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server does not answer after {STARTED:.0f} s")


@contextmanager
def serving(model: Path, folder: Path, port: int | None = None, connector: bool = True) -> Iterator[Any]:
    """vLLM's own HTTP server over the model in one folder and the exports in another; a client of it."""
    import httpx

    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    transfer = (
        '{"kv_connector": "SonicConnector", "kv_connector_module_path": "sonic_kv.integrations.vllm", '
        f'"kv_role": "kv_consumer", "kv_connector_extra_config": {{"folder": "{folder}"}}}}'
    )
    options = ["serve", str(model), "--served-model-name", "default", "--dtype", "float32"]
    options += ["--enforce-eager", "--max-model-len", str(LENGTH), "--block-size", str(BLOCK)]
    if connector:
        options += ["--middleware", "sonic_kv.integrations.vllm.SessionCheck"]
        options += ["--kv-transfer-config", transfer]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, *options, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | ENVIRONMENT,
        start_new_session=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            wait_for(client, server)
            yield client
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it waits for replies that are under way otherwise
        server.wait(60)


def complete(client: Any, prompt: list[int], session: Any, **options: Any) -> Any:
    body = {
        "model": "default",
        "prompt": prompt,
        "max_tokens": NEW,
        "temperature": 0,
        "return_token_ids": True,
    }
    params = {"kv_transfer_params": {"sonic_session": session}}
    return client.post("/v1/completions", json={**body, **params, **options})


def test_a_server_replies_what_the_session_replies(tmp_path: Path) -> None:
    """With a model that was trained: its replies may end before they are as long as they may be."""
    model = SonicModel.from_pretrained("tiny")
    chat = talk(model, 50)
    export = chat.export(tmp_path)
    prompt, expected = prompt_of(chat, export), reply_of(chat)
    with serving(TINY, tmp_path) as client:
        done = complete(client, prompt, export.digest).json()
        assert done["choices"][0]["token_ids"] == expected
        for session, reason in [("0" * 64, "does not exist"), ("../x", "is not the digest of an export")]:
            refused = complete(client, prompt, session)
            assert refused.status_code == 400
            assert reason in refused.json()["error"]["message"]
        assert "prompt must be the 50 tokens" in complete(client, prompt[1:], export.digest).text
        assert complete(client, prompt, export.digest, prompt_logprobs=1).status_code == 400
        damaged = talk(model, 51)
        spoilt = damaged.export(tmp_path)
        data = spoilt.path.read_bytes()
        spoilt.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert complete(client, prompt_of(damaged, spoilt), spoilt.digest).status_code == 500
        assert complete(client, prompt, export.digest).json()["choices"][0]["token_ids"] == expected

        question = {"role": "user", "content": QUESTION}
        params = {"sonic_session": export.digest, "prompt_token_ids": prompt}
        body = {"model": "default", "messages": [question], "max_tokens": NEW, "temperature": 0}
        body |= {"return_token_ids": True, "kv_transfer_params": params}
        said = client.post("/v1/chat/completions", json=body).json()
        assert said["choices"][0]["token_ids"] == expected
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
            events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert events[-1] == "[DONE]"
        text = [c["delta"].get("content") or "" for e in events[:-1] for c in json.loads(e)["choices"]]
        assert "".join(text) == said["choices"][0]["message"]["content"]
