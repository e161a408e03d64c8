"""Replies decoded by vLLM. Sessions, segments and their compression stay here; vLLM reads exports of them.

For every reply vLLM gets the token ids of the session's export, of the open segment, and the name of the
export, whose entries it loads instead of computing the first of these tokens. It answers with token ids: text
and stop texts are made of them here, as for a reply that is decoded in this process.
"""

import asyncio
import json
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sonic_kv.cache.export import Export, write_export
from sonic_kv.compress.options import SessionConfig
from sonic_kv.errors import ConfigError, FileError, StoreError, UnsupportedModelError, UpstreamError
from sonic_kv.files import write_atomic
from sonic_kv.model.model import SonicModel
from sonic_kv.options import parse_bytes
from sonic_kv.server.options import ServeOptions
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.engine import Engine, Turn, Turning
from sonic_kv.session.generate import Writer
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.sampling import PLAIN, settled
from sonic_kv.session.state import export_of

T = TypeVar("T")
Write = Callable[[Path], Export]
log = logging.getLogger(__name__)
CONNECT_SECONDS = 5.0
FRESH_SECONDS = 10.0  # vLLM takes longer to start
SWEEP_SECONDS = 60.0
OURS = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\..+\.tmp)?")  # exports, and those that were never finished
MARK = "OWNED-BY-SONIC-KV.txt"
TEXT = b"sonic-kv serve writes sessions into this folder for vLLM to read, and deletes those that it wrote.\n"
NOBODY = "0" * 64  # a session that does not exist
# What a model's generation_config.json would change otherwise.
DEFAULTS = {"ignore_eos": True}


class Exports:
    """The folder that vLLM reads. One thread does all of it, so that nothing is deleted that is being taken up.

    A file is safe while a reply is decoded over it. After that it only saves writing it again: it goes when it
    has not been used for `ttl` seconds, or when it is the oldest of more than `limit` bytes.
    """

    def __init__(self, folder: str, ttl: float, limit: int) -> None:
        self.folder, self._ttl, self._limit = Path(folder).expanduser(), ttl, limit
        try:
            inside = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        except OSError as error:
            raise FileError(f"cannot read {self.folder}: {error.strerror}") from error
        if MARK not in inside and not all(map(OURS.fullmatch, inside)):  # nothing of others is to be deleted
            raise ConfigError(f"{self.folder} holds other files: choose an empty folder for --vllm-folder")
        write_atomic(self.folder / MARK, TEXT, private=True)  # exports are dialogues, and nobody else's
        self._thread = ThreadPoolExecutor(1, "sonic-kv-exports")
        self._known = WeakTensorKeyDictionary()
        self._used: dict[object, str] = {}  # digests
        self._swept = time.monotonic()

    @asynccontextmanager
    async def using(self, memory: Tensor, write: Write) -> AsyncIterator[Export]:
        """The export that `write` puts into the folder, which stays until the end of the block.

        Args:
            memory: a tensor of what is exported; the same one has the same export, which is not written again.

        Raises:
            StoreError: it cannot be written.
        """
        use = object()
        try:
            yield await asyncio.wrap_future(self._thread.submit(self._take, use, memory, write))
        finally:
            self._thread.submit(self._used.pop, use, None)

    def prepare(self, memory: Tensor, write: Write) -> None:
        """Have it written by the time that it is used."""
        self._thread.submit(self._write, memory, write)

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.shutdown()

    def _take(self, use: object, memory: Tensor, write: Write) -> Export:
        export = self._write(memory, write)
        self._used[use] = export.digest
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self.sweep()
        return export

    def _write(self, memory: Tensor, write: Write) -> Export:
        export: Export | None = self._known.get(memory)
        try:
            if export is None or not export.path.exists():
                export = self._known[memory] = write(self.folder)
            os.utime(export.path)
        except (FileError, OSError) as error:
            raise StoreError(f"the session could not be exported: {error}") from error
        return export

    def sweep(self) -> None:
        """Delete what is too old, and the oldest of what is too much."""
        total = 0
        for written, size, path in sorted(self._files(), reverse=True):
            total += size
            if time.time() - written > self._ttl or total > self._limit:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if OURS.fullmatch(entry.name) and entry.name[:64] not in self._used.values():
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:  # another gateway was faster
                        continue
                    found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        return found


class Vllm:
    """A vLLM server's API. Used in one event loop.

    Before the first request, and again after a failed one or a silence, it is asked for its model, for a session
    that does not exist and for a `probe`: what ignores sessions, runs another model or reads another folder would
    answer, but not as this model does.

    Args:
        url: where it listens.
        timeout: seconds without a sign of it.
        exports: the folder that it should read.
        probe: of one token, as `exports` takes it.
    """

    def __init__(self, url: str, timeout: float, exports: Exports, probe: tuple[Tensor, Write]) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.max_length = 0  # of a request's tokens, once it is known
        self._timeout, self._exports, self._probe = timeout, exports, probe
        key = os.environ.get("VLLM_API_KEY")  # vLLM itself reads it there
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None),
        )
        self._meeting: asyncio.Task[str] | None = None
        self._seen = 0.0  # when it last gave a sign of being the one that was met

    async def tokens(self, body: dict[str, Any]) -> AsyncIterator[list[int]]:
        """The tokens of a completion as they come; vLLM stops making them when the iterator is closed.

        Raises:
            UpstreamError
        """
        async with self._errors():
            body = {**body, "model": await self.meet(), "stream": True, "return_token_ids": True}
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if not response.is_success:
                    await response.aread()
                    raise UpstreamError(f"vLLM refused the request: {_reason(response)}")
                async for line in response.aiter_lines():
                    self._seen = time.monotonic()
                    data = line.removeprefix("data: ")
                    if data == "[DONE]":
                        return
                    if data:
                        yield _token_ids(json.loads(data))
                raise UpstreamError("vLLM ended the reply in the middle")

    async def meet(self) -> str:
        """The name of its model, once it is known to be ours.

        Raises:
            UpstreamError
        """
        meeting, silence = self._meeting, time.monotonic() - self._seen
        if meeting is None or (meeting.done() and (silence > FRESH_SECONDS or meeting.exception())):
            meeting = self._meeting = asyncio.create_task(self._meet())
        return await asyncio.shield(meeting)

    async def _meet(self) -> str:
        async with self._errors():
            response = await self._http.get("/v1/models")
            if not response.is_success:
                raise UpstreamError(f"vLLM does not tell its model: {_reason(response)}")
            model = response.json()["data"][0]
            name, length = str(model["id"]), int(model["max_model_len"])
            async with self._exports.using(*self._probe) as probe:
                if (await self._one_token(name, probe.token_ids, NOBODY)).is_success:
                    raise UpstreamError(
                        "vLLM runs without sonic-kv's connector: docs/guides/vllm.md says how to start it"
                    )
                response = await self._one_token(name, probe.token_ids, probe.digest)
            if not response.is_success:
                raise UpstreamError(
                    f"vLLM cannot load sessions of this model from {self._exports.folder}: {_reason(response)}"
                )
            self.max_length, self._seen = length, time.monotonic()
            return name

    async def _one_token(self, name: str, prefix: list[int], session: str) -> httpx.Response:
        body = {"model": name, "prompt": [*prefix, prefix[0]], "max_tokens": 1, **_session(session)}
        return await self._http.post("/v1/completions", json=body)

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        """Every failure as an `UpstreamError`; who answers after it may be someone else."""
        try:
            try:
                yield
            except httpx.ReadTimeout as error:
                raise UpstreamError(f"vLLM at {self.url} gave no sign for {self._timeout:g} s") from error
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                raise UpstreamError(f"vLLM at {self.url} cannot be reached or broke off: {reason}") from error
            except (ValueError, LookupError, TypeError) as error:
                raise UpstreamError(f"{self.url} does not answer as vLLM does: {error!r}") from error
        except UpstreamError:
            self._meeting = None
            raise

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()


def _session(digest: str) -> dict[str, Any]:
    return {"kv_transfer_params": {"sonic_session": digest}}


def _token_ids(chunk: dict[str, Any]) -> list[int]:
    """Those of a chunk of the stream.

    Raises:
        UpstreamError: it tells an error.
    """
    if "error" in chunk:
        raise UpstreamError(f"vLLM failed: {chunk['error'].get('message')}")
    choice = chunk["choices"][0]
    if choice.get("finish_reason") not in (None, "stop", "length"):
        raise UpstreamError(f"vLLM ended the reply: {choice['finish_reason']}")
    return [int(token) for token in choice["token_ids"]]


def _reason(response: httpx.Response) -> str:
    """Why a request was refused, in one line."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = response.text
    return f"{response.status_code} {' '.join(message.split())[:300]}".strip()


class VllmEngine(Engine):
    """An engine whose replies are decoded by a vLLM server.

    The model runs here only to read: what users and replies say becomes part of the session, and is compressed
    with it. If the open segment is full in the middle of a reply, vLLM goes on over the new export.

    Args:
        config: of the sessions.
        options: where vLLM is.
        wake: called, in any thread, when `step` has something to do.

    Raises:
        ConfigError: the sessions' positions are not compact.
        UnsupportedModelError: the model has a sliding window.
        FileError: there can be no folder for exports.
    """

    def __init__(
        self, model: SonicModel, config: SessionConfig, options: ServeOptions, wake: Callable[[], None]
    ) -> None:
        if config.positions != "compact":
            raise ConfigError("engine='vllm' counts entries as positions: it needs positions='compact'")
        if model.sliding_window is not None:
            raise UnsupportedModelError(
                "engine='vllm' needs full attention, and the model has a sliding window"
            )
        super().__init__(model, options.slice_tokens)
        assert options.vllm_url is not None
        self._wake, self._streams, self._positions = wake, 0, model.max_length
        self._exports = Exports(options.vllm_folder, options.store_ttl, parse_bytes(options.store_bytes))
        self._vllm = Vllm(options.vllm_url, options.vllm_timeout, self._exports, self._probe())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sonic-kv-vllm", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._vllm.meet(), self._loop).add_done_callback(_warn)

    def _probe(self) -> tuple[Tensor, Write]:
        """An export of one token, with random entries: no other gateway's file is mistaken for it."""
        model, base, generator = self.model, self.model.fingerprint(), torch.Generator()
        generator.seed()
        shape = (2 * model.num_layers, model.num_heads, 1, model.head_dim)
        entries = torch.rand(shape, generator=generator, dtype=model.dtype)
        layers = list(zip(entries[::2], entries[1::2], strict=True))
        return entries, lambda folder: write_export(folder, base, [0], [], layers)

    @property
    def decoding(self) -> int:
        """Replies that vLLM is asked for."""
        return self._streams

    def close(self) -> None:
        self.model.max_length = self._positions

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._vllm.close()
            self._exports.close()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _make(self, turn: Turn) -> Turning:
        if turn.sampling is not None:  # before anything is read in vain
            meeting = self._ask(self._vllm.meet())
            yield meeting
            meeting.result()
            self.model.max_length = min(self._vllm.max_length, self._positions)
        yield from super()._make(turn)
        session = turn.session
        if turn.sampling is not None and session is not None and session.cache.lengths.memory:
            self._exports.prepare(*_export_of(session))  # while the user thinks

    def _ask(self, asked: Coroutine[Any, Any, T]) -> "Future[T]":
        future = asyncio.run_coroutine_threadsafe(asked, self._loop)
        future.add_done_callback(lambda _: self._wake())
        return future

    def _reply(self, turn: Turn, draft: Dialogue, sampling: SamplingConfig) -> Turning:
        token = turn.last if turn.last is not None else (yield from draft.begin_draft(turn.begun))
        turn.prompt_tokens = draft.cache.logical_length + 1
        writer = draft.writer(sampling, self.model.room(draft.cache) - 1)
        while turn.finish_reason is None:
            most = writer.left
            if draft.limited:
                most = min(most, draft.config.max_segment_tokens - draft.cache.open_length)
            body = {
                "max_tokens": most,
                **{name: getattr(settled(sampling, self.model.base), name) for name in PLAIN},
                "presence_penalty": sampling.presence_penalty,
                "frequency_penalty": sampling.frequency_penalty,
                "logit_bias": {str(int(token)): bias for token, bias in sampling.logit_bias} or None,
                "stop_token_ids": sorted(self.model.stop_ids),
                **DEFAULTS,
            }
            if sampling.seed is not None:  # behind a closed segment a reply goes on with other numbers
                body["seed"] = (sampling.seed + writer.count) % (1 << 63)
            lengths = draft.cache.lengths
            if lengths.memory:
                behind = [*draft.token_ids[lengths.closed :], token]
                asked = self._ask(self._decode_over(*_export_of(draft), behind, body, turn, writer))
            else:
                asked = self._ask(self._decode_there([*draft.token_ids, token], body, turn, writer))
            self._streams += 1
            try:
                yield asked
                written = asked.result()
            finally:
                self._streams -= 1
                asked.cancel()
            if turn.finish_reason is None:  # the open segment is full
                yield from draft.feed([token, *written[:-1]], self._slice)
                yield from draft.close_if_full()
                token = written[-1]

    async def _decode_over(
        self,
        memory: Tensor,
        write: Write,
        behind: list[int],
        body: dict[str, Any],
        turn: Turn,
        writer: Writer,
    ) -> list[int]:
        """`_decode_there`, of what stands behind an exported memory."""
        async with self._exports.using(memory, write) as export:
            prompt = export.token_ids + behind
            return await self._decode_there(prompt, body | _session(export.digest), turn, writer)

    async def _decode_there(
        self, prompt: list[int], body: dict[str, Any], turn: Turn, writer: Writer
    ) -> list[int]:
        """Have `max_tokens` tokens decoded, or as many as the reply has.

        Raises:
            UpstreamError
        """
        written: list[int] = []
        async with aclosing(self._vllm.tokens({**body, "prompt": prompt})) as stream:  # type: ignore[type-var]
            async for tokens in stream:
                for token in tokens:
                    written.append(token)
                    turn.add(writer.add(token))
                    if turn.finish_reason is not None:
                        return written
        if len(written) < body["max_tokens"]:
            raise UpstreamError("vLLM ended the reply too early")
        return written


def _export_of(session: Dialogue) -> tuple[Tensor, Write]:
    """A session's export, as `Exports` takes it."""
    return session.cache.memory_tensor, export_of(session)


def _warn(met: "Future[str]") -> None:
    if not met.cancelled() and met.exception() is not None:
        log.warning("%s; requests fail until this is mended", met.exception())
