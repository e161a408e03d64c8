"""`ChatSession`: one dialogue, its transcript and its compressed cache."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sonic_kv.cache.cache import Lengths, SessionCache
from sonic_kv.cache.export import Export, write_export
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import DEFAULT_BUDGET, Budget, SessionConfig
from sonic_kv.compress.policies import Policy, described, policy_of, restored
from sonic_kv.errors import (
    AdapterError,
    ConfigError,
    FileError,
    MessageError,
    NumericalError,
    UnsupportedModelError,
)
from sonic_kv.files import read_sealed, write_sealed
from sonic_kv.model.chat_format import step
from sonic_kv.model.fingerprint import check_fingerprint
from sonic_kv.model.messages import Message, check_messages
from sonic_kv.model.model import SonicModel
from sonic_kv.session.generate import NAN_LOGITS, stream_generate
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.state import translated

Done = TypeVar("Done")
Steps = Generator[None, None, None]  # pauses where something else may be done


@dataclass(frozen=True)
class Usage:
    """What one reply took. Counts are tokens, `seconds` ends with the reply's last token."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True)
class Reply:
    """The assistant's text, why it ended ("stop" or "length"), and what it took."""

    text: str
    finish_reason: str
    usage: Usage


@dataclass(frozen=True)
class SegmentStats:
    """A closed segment: its raw tokens, and entries kept (mean over layers and KV heads)."""

    tokens: int
    entries: float


@dataclass(frozen=True)
class SessionStats:
    """Where a session stands. `bytes` is allocated now; `full_bytes` is what full context would hold."""

    logical_tokens: int
    entries: int
    prefix: int
    memory: int
    open: int
    bytes: int
    full_bytes: int
    segments: tuple[SegmentStats, ...]


class _Cancelled(Exception):
    """A closing that was called off."""


def _new_cache(model: SonicModel, config: SessionConfig) -> SessionCache:
    return SessionCache(model.num_layers, compact=config.positions == "compact", bits=config.bits)


def _copied(model: SonicModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A cache's tensors from a file, in the model's dtype and without the file's own storage, which is to be closed."""
    computed = (".keys", ".values", ".channels")
    return {
        name: tensor.to(model.device, model.dtype if name.endswith(computed) else None, copy=True)
        for name, tensor in tensors.items()
        if name != "token_ids"
    }


def _run(steps: Generator[None, None, Done]) -> Done:
    """What a generator returns, without its pauses."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            done: Done = end.value
            return done


class ChatSession:
    """One dialogue whose past is compressed as it grows.

    A call that fails leaves the session as it was before the call.

    Args:
        model: base and adapter.
        budget: limit of the cache; default: 80 % of the history's entries are removed.
        system: system prompt; part of the prefix, never compressed.
        config: segments, positions, selection.
        sampling: how replies are generated unless a call says otherwise.
        policy: which entries are kept, by name or an object of your own; None: what `config` names.
    """

    def __init__(
        self,
        model: SonicModel,
        budget: Budget | None = None,
        system: str | None = None,
        config: SessionConfig | None = None,
        sampling: SamplingConfig | None = None,
        *,
        policy: Policy | str | None = None,
    ) -> None:
        _run(self._begin(model, budget, system, config, sampling, policy))

    @classmethod
    def making(
        cls,
        model: SonicModel,
        budget: Budget | None = None,
        system: str | None = None,
        config: SessionConfig | None = None,
        slice_tokens: int | None = None,
    ) -> Generator[None, None, "ChatSession"]:
        """A new session, made with a pause after every model run over at most `slice_tokens` of its prefix."""
        session = object.__new__(cls)
        yield from session._begin(model, budget, system, config, None, None, slice_tokens)
        return session

    def _begin(
        self,
        model: SonicModel,
        budget: Budget | None,
        system: str | None,
        config: SessionConfig | None,
        sampling: SamplingConfig | None,
        policy: Policy | str | None,
        slice_tokens: int | None = None,
    ) -> Steps:
        self.model = model
        self.budget = budget or DEFAULT_BUDGET
        self.config = config or SessionConfig()
        self.sampling = sampling or SamplingConfig()
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self.token_ids: list[int] = []
        self.last_reply: Reply | None = None
        self.policy = policy_of(policy or self.config.policy, model)
        self._compressor = Compressor(model, self.config, self.policy)
        self.cache = _new_cache(model, self.config)
        if system is not None:
            self.messages += check_messages([{"role": "system", "content": system}])
        prefix = model.format.prefix(system)
        self._busy = False
        self._check_room(len(prefix))
        size = slice_tokens or max(len(prefix), 1)
        for start in range(0, len(prefix), size):
            self._feed_chunk(prefix[start : start + size])
            yield
        self.cache.mark_prefix()
        self._compressor.shrink(self.cache, self.budget)  # raises if it cannot hold the prefix

    def send(self, text: str | None, sampling: SamplingConfig | None = None) -> Reply:
        """Say `text` and return the reply; None answers a user message that `extend` appended.

        Raises:
            ContextLengthError, UnsupportedModelError, NumericalError, BudgetError
        """
        for _ in self.stream(text, sampling):
            pass
        assert self.last_reply is not None
        return self.last_reply

    def stream(self, text: str | None, sampling: SamplingConfig | None = None) -> Generator[str, None, None]:
        """Say `text` and yield the reply piece by piece; then `last_reply` is set.

        The segment is closed after the last piece. A stream that is not read to its end is undone.
        """
        start = time.perf_counter()
        self._check_idle()
        unanswered = bool(self.messages) and self.messages[-1]["role"] in ("user", "tool")
        if unanswered is not (text is None):
            raise MessageError(
                "the last message is still unanswered: send(None) answers it"
                if unanswered
                else "there is no message to answer: give the user's text"
            )
        with self._transaction() as before:
            asked = self.model.format.closed(self.messages)
            if text is not None:
                self.messages += check_messages([{"role": "user", "content": text}])
            prompt = self.model.format.prompt(self.messages)
            yield from self._reply(
                before, self._change(asked, prompt), prompt, sampling or self.sampling, start
            )

    def draft(self) -> tuple["ChatSession", int]:
        """A fork that is about to reply to the last message, and the token whose logits begin the reply.

        What is decoded on it is a draft: `extend` puts the finished reply into this session, which then
        holds exactly what it would hold had the reply been there from the start.
        """
        return _run(self.drafting())

    def drafting(self) -> Generator[None, None, tuple["ChatSession", int]]:
        """`draft` that pauses after every model run."""
        draft = self.fork()
        form = self.model.format
        prompt = draft._change(form.closed(self.messages), form.prompt(self.messages))
        token = yield from draft._opening_reply(prompt)
        return draft, token

    def catching_up(self, token_ids: Sequence[int], slice_tokens: int) -> Steps:
        """On a draft: feed reply tokens that were decoded elsewhere, and close the open segment if that fills it."""
        yield from self._feeding(token_ids, slice_tokens)
        yield from self.closing_if_full()

    def closing_if_full(self) -> Steps:
        """Close the open segment if it has `max_segment_tokens`, before more is fed; pauses on the way."""
        if self.limited and self.cache.open_length >= self.config.max_segment_tokens:
            yield from self._closing()

    def _opening_reply(self, prompt: list[int]) -> Generator[None, None, int]:
        """Feed all of `prompt` but its last token, and return that one."""
        self._check_room(len(prompt) + 1)
        if not prompt:  # the template has no generation prompt: the last token is fed again for its logits
            prompt = self._take_back(1)
        yield from self._feeding(prompt[:-1])
        yield from self.closing_if_full()
        return prompt[-1]

    def _fits(self, prompt: list[int]) -> bool:
        """Whether all of `prompt` can be fed before the open segment is full, or positions run out."""
        size = self.cache.open_length + len(prompt) - 1
        short = not self.limited or size < self.config.max_segment_tokens
        return bool(prompt) and short and len(prompt) < self.model.room(self.cache)

    def _reply(
        self,
        before: "ChatSession",
        prompt: list[int],
        asked: list[int],
        sampling: SamplingConfig,
        start: float,
    ) -> Iterator[str]:
        """Write the reply.

        Args:
            before: this session before the call.
            prompt: what is still to be fed of `asked`, the whole transcript up to the reply.
        """
        # one model run to the first token, unless the message fills the segment on its way
        rest = prompt if self._fits(prompt) else [_run(self._opening_reply(prompt))]
        text, reason, written = "", "length", list[int]()
        with closing(stream_generate(self.model, [rest], [self.cache], sampling)) as steps:
            for (piece,) in steps:
                assert piece is not None
                self.token_ids += written[-1:] or rest  # what this step has fed
                written.append(piece.token_id)
                text += piece.text
                if piece.text:
                    yield piece.text
                if piece.finish_reason is None:
                    _run(self.closing_if_full())
                else:
                    reason = piece.finish_reason
        seconds = time.perf_counter() - start
        self.messages.append({"role": "assistant", "content": text})
        self._finish(before, asked + written[:-1])
        self.last_reply = Reply(text, reason, Usage(len(prompt), len(written), seconds))

    def _finish(self, before: "ChatSession", fed: list[int]) -> None:
        """Complete the exchange: the cache then holds what `extend` would have put there.

        Args:
            before: this session before the call.
            fed: the transcript as it was fed: prompt and sampled tokens.
        """
        way = step(fed, self.model.format.closed(self.messages))
        if way.drop <= self.cache.open_length:
            self._take_back(way.drop)
            _run(self._feeding(way.token_ids[: self.model.room(self.cache)]))
            _run(self._ending_exchange())
            return
        # a part of the reply is compressed already, and the template has the reply otherwise
        said = self.messages[len(before.messages) :]
        self.cache.restore(before.cache)
        self.messages, self.token_ids = list(before.messages), list(before.token_ids)
        _run(self._appending(said))

    def extend(self, messages: Sequence[Message]) -> None:
        """Append messages that are already written; nothing is generated.

        Raises:
            MessageError, ContextLengthError, UnsupportedModelError, BudgetError
        """
        _run(self.extending(messages))

    def extending(self, messages: Sequence[Message], slice_tokens: int | None = None) -> Steps:
        """`extend` that pauses after every model run, each over at most `slice_tokens` tokens, and while closing.

        One that is not read to its end is undone. Slices begin with the message, whatever else runs.
        """
        checked = check_messages(messages)
        if checked[0]["role"] == "system" and not self.messages:
            raise MessageError("a session takes its system prompt when it is made: ChatSession(system=…)")
        with self._transaction():
            yield from self._appending(checked, slice_tokens)

    def _appending(self, messages: Sequence[dict[str, Any]], slice_tokens: int | None = None) -> Steps:
        form = self.model.format
        before = form.closed(self.messages)
        for message in messages:
            self.messages.append(message)
            after = form.closed(self.messages)
            yield from self._feeding(self._change(before, after), slice_tokens)
            before = after
            if message["role"] == "assistant":
                yield from self._ending_exchange()

    def _change(self, before: list[int], after: list[int]) -> list[int]:
        """Take back what the transcript `after` has no more, and return what is to be fed.

        Raises:
            MessageError: it is compressed already.
        """
        way = step(before, after)
        if way.drop <= self.cache.open_length:
            self._take_back(way.drop)
            return way.token_ids
        first = len(self.messages) == 1 + (self.system is not None)
        if not first:
            raise MessageError(
                "the chat template rewrites messages that are compressed already: make a new session of all messages"
            )
        # no header has a token in common with the other roles': the prefix is the first message's
        prefix = self.model.format.prefix(self.system, self.messages[-1]["role"])
        self.cache, self.token_ids = _new_cache(self.model, self.config), []
        self._feed_chunk(prefix)
        self.cache.mark_prefix()
        return after[len(prefix) :]

    def set_budget(self, budget: Budget) -> None:
        """Change the budget. A lower one shrinks the memory at once and does not run the model.

        The open segment follows when it is closed: with no budget before, that is the whole dialogue.
        What has been dropped does not come back: a higher budget holds for what is still to come.

        Lowering in steps is lowering once, unless the segments have shares of their own (`allocation="segment"`).
        It equals compressing with the lower budget in the first place while one segment is closed and the
        kept tokens were re-encoded in both; later segments were encoded with more memory in sight.

        Raises:
            BudgetError: it cannot hold the prefix.
        """
        with self._transaction():
            self._compressor.shrink(self.cache, budget)
            self.budget = budget

    def fork(self) -> "ChatSession":
        """A copy that goes on by itself."""
        self._check_idle()
        return self._copy()

    def _copy(self) -> "ChatSession":
        other = object.__new__(ChatSession)
        other.__dict__.update(self.__dict__)
        other.messages, other.token_ids = list(self.messages), list(self.token_ids)
        other.cache = self.cache.fork()
        return other

    @property
    def stats(self) -> SessionStats:
        """Entries, bytes and segments as they are now."""
        cache, lengths = self.cache, self.cache.lengths
        ends = [*lengths.segment_starts, lengths.closed][1:]
        kept = torch.zeros(len(lengths.segment_starts))
        if lengths.memory:
            starts = torch.tensor(lengths.segment_starts)
            for layer in cache.layers:
                positions = layer.positions[layer.scores > -torch.inf].cpu()
                owner = torch.bucketize(positions, starts, right=True) - 1
                kept += torch.bincount(owner, minlength=len(kept)) / len(cache.layers) / len(layer.counts)
        return SessionStats(
            logical_tokens=cache.logical_length,
            entries=cache.stored,
            prefix=lengths.prefix,
            memory=lengths.memory,
            open=cache.open_length,
            bytes=cache.nbytes,
            full_bytes=cache.logical_length * self.model.bytes_per_token,
            segments=tuple(
                SegmentStats(end - start, entries)
                for start, end, entries in zip(lengths.segment_starts, ends, kept.tolist(), strict=True)
            ),
        )

    def save(self, path: str | Path) -> None:
        """Write the session to a sealed safetensors file, atomically."""
        write_sealed(path, "session", *self.state())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header and tensors of the session's file."""
        self._check_idle()
        tensors = {"token_ids": torch.tensor(self.token_ids, dtype=torch.int64), **self.cache.state()}
        header = {
            "base": self.model.fingerprint(),
            "adapter": self._adapter_digest(),
            "policy": described(self.policy),
            "budget": asdict(self.budget),
            "config": asdict(self.config),
            "sampling": asdict(self.sampling),
            "messages": self.messages,
            "lengths": asdict(self.cache.lengths),
            "stats": asdict(self.stats),
        }
        return header, tensors

    def export(self, folder: str | Path) -> Export:
        """Write prefix and memory for an engine that holds ordinary KV: `folder/digest.safetensors`.

        The open segment is not in the file: its tokens, `open_ids`, are ordinary prompt tokens there.

        Raises:
            ConfigError: the session's positions are not compact.
            UnsupportedModelError: the model has a sliding window.
            MessageError: nothing is stored yet.
            FileError: the file cannot be written.
        """
        return self.exporting()(folder)

    def exporting(self) -> Callable[[str | Path], Export]:
        """`export` in two steps: what it returns writes the file, in any thread, while this session goes on."""
        self._check_idle()
        if not self.cache.compact:
            raise ConfigError(
                "an export needs consecutive positions: make the session with SessionConfig(positions='compact')"
            )
        if self.model.sliding_window is not None:
            raise UnsupportedModelError(
                f"the model has a sliding window of {self.model.sliding_window} tokens, and an export is for full "
                "attention: use another model"
            )
        lengths = self.cache.lengths
        end = lengths.prefix + lengths.memory
        if not end:
            raise MessageError(
                "there is nothing to export: the session has no prefix and no closed segment yet"
            )
        # a memory entry has no token of its own: the transcript's first one (the BOS) stands in its place
        token_ids = self.token_ids[: lengths.prefix] + self.token_ids[:1] * lengths.memory
        layers = [(layer.keys[0, :, :end], layer.values[0, :, :end]) for layer in self.cache.layers]
        open_ids = self.token_ids[lengths.closed :]
        base = self.model.fingerprint()
        return partial(write_export, base=base, token_ids=token_ids, open_ids=open_ids, layers=layers)

    @classmethod
    def load(cls, model: SonicModel, path: str | Path, *, policy: Policy | None = None) -> "ChatSession":
        """Continue a saved session.

        Args:
            policy: which entries are kept from now on; None: the saved session's, if it is one of ours.

        Raises:
            FileError: missing, damaged or changed.
            AdapterError: saved with another model or adapter.
            ConfigError: its policy is not one of ours, and none is given.
        """
        return cls.from_state(model, *read_sealed(path, "session"), str(path), policy)

    @classmethod
    def from_state(
        cls,
        model: SonicModel,
        header: dict[str, Any],
        tensors: dict[str, Tensor],
        path: str,
        policy: Policy | None = None,
    ) -> "ChatSession":
        """The session that `state` took apart; `path` is what errors call it.

        Raises:
            AdapterError: saved with another model or adapter.
            FileError: of another version.
            ConfigError: its policy is not one of ours, and none is given.
        """
        check_fingerprint(header.get("base", {}), model.fingerprint(), f"session {path}")
        try:
            header = translated(header)
            config = SessionConfig(**header["config"])
            sampling = dict(header["sampling"], stop=tuple(header["sampling"]["stop"]))
            session = object.__new__(cls)
            session.model, session.config, session.last_reply = model, config, None
            session._busy = False
            session.budget, session.sampling = Budget(**header["budget"]), SamplingConfig(**sampling)
            session.messages = [dict(message) for message in header["messages"]]
            session.token_ids = tensors["token_ids"].tolist()
            lengths = header["lengths"]
            session.cache = SessionCache.from_state(
                model.num_layers,
                _copied(model, tensors),
                Lengths(**dict(lengths, segment_starts=tuple(lengths["segment_starts"]))),
                compact=config.positions == "compact",
                bits=config.bits,
            )
            found = header["adapter"]
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"session {path} does not fit this version of sonic-kv: {error}") from error
        first = session.messages[:1]
        session.system = first[0]["content"] if first and first[0]["role"] == "system" else None
        if found != session._adapter_digest():
            raise AdapterError(f"session {path} was saved with another adapter: load the model with that one")
        session.policy = policy or restored(header["policy"], model, f"session {path}")
        session._compressor = Compressor(model, config, session.policy)
        return session

    def _adapter_digest(self) -> str | None:
        return None if self.model.adapter is None else self.model.adapter.digest()

    @contextmanager
    def _transaction(self) -> Iterator["ChatSession"]:
        """Undo everything if the block fails or is abandoned; meanwhile no other call may begin."""
        self._check_idle()
        before = self._copy()
        self._busy = True
        try:
            yield before
        except BaseException:
            self.cache.restore(before.cache)
            self.__dict__.update({**before.__dict__, "cache": self.cache})
            raise
        self.cache.pack()
        self._busy = False

    def _check_idle(self) -> None:
        if self._busy:
            raise MessageError("a reply is still being streamed: read the stream to its end, or close it")

    def _feeding(self, token_ids: Sequence[int], slice_tokens: int | None = None) -> Steps:
        """Append tokens, closing the open segment whenever it is full and more comes."""
        self._check_room(len(token_ids))
        rest = list(token_ids)
        while rest:
            yield from self.closing_if_full()
            size = slice_tokens or len(rest)
            if self.limited:
                size = min(size, self.config.max_segment_tokens - self.cache.open_length)
            self._feed_chunk(rest[:size])
            rest = rest[size:]
            yield

    def _feed_chunk(self, token_ids: list[int]) -> None:
        self.model.check_room(self.cache, len(token_ids))
        logits = self.model.feed(self.cache, token_ids)
        if bool(logits.isnan().any()):
            raise NumericalError(NAN_LOGITS)
        self.token_ids += token_ids

    def _take_back(self, count: int) -> list[int]:
        """Remove the newest tokens of the open segment; returns them."""
        if count > self.cache.open_length:
            raise MessageError("there is nothing to answer: the message has no tokens")
        self.cache.drop_newest(count)
        taken = self.token_ids[len(self.token_ids) - count :]
        del self.token_ids[len(self.token_ids) - count :]
        return taken

    def _check_room(self, new_tokens: int) -> None:
        """Fail early, unless closing a segment on the way may make room: then every chunk is checked."""
        if not (self.cache.compact or (self.limited and self.model.can_rebase)):
            self.model.check_room(self.cache, new_tokens)

    @property
    def limited(self) -> bool:
        """Whether segments are closed at all."""
        unlimited = self.budget in (Budget(), Budget(compression_ratio=0.0))
        return not unlimited or self.config.bits is not None

    @property
    def pending(self) -> bool:
        """Whether there is a segment that `compress` would close."""
        complete = bool(self.messages) and self.messages[-1]["role"] == "assistant"
        return self.limited and complete and self.cache.open_length >= self.config.min_segment_tokens

    def compress(self, cancelled: Callable[[], bool] = lambda: False) -> bool:
        """With `closing="asked"`: close what the last exchange left open, while the user thinks.

        If the next message comes first, the session goes on over the raw segment, which is closed with
        that exchange: waiting for a reply never includes a closing. What is left open for long is closed
        after a reply (when it has half of `max_segment_tokens`).

        Args:
            cancelled: asked a few times on the way; once it says yes, nothing has happened.

        Returns:
            whether a segment was closed.
        """
        self._check_idle()
        if not self.pending:
            return False
        with suppress(_Cancelled), self._transaction():
            for _ in self._closing():
                if cancelled():
                    raise _Cancelled
            return True
        return False

    def _ending_exchange(self) -> Steps:
        least = self.config.min_segment_tokens
        if self.config.closing == "asked":
            least = max(least, self.config.max_segment_tokens // 2)
        if self.limited and self.cache.open_length >= least:
            yield from self._closing()

    def _closing(self) -> Steps:
        return self._compressor.closing(self.cache, self.token_ids, self.budget)
