"""A dialogue and its compressed cache, and all that can be done to it: operations, which yield their work.

What is kept of a reply are the tokens that its text has in the transcript, whoever wrote it: the model here, in an
engine, on another server, or nobody (`extend`). Sampled tokens stay in the cache as far as they are these; where a
model writes a text in other tokens than the tokenizer does, the rest is fed again. So a dialogue is a function of its
messages, and a session, a server and a transcript that is sent again agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig, default_budget
from sonic_kv.errors import ContextLengthError, MessageError, NumericalError
from sonic_kv.model.chat_format import ChatFormat, step
from sonic_kv.model.common import same
from sonic_kv.model.messages import Message, check_messages, ends_exchange
from sonic_kv.model.model import SonicModel
from sonic_kv.options import expect
from sonic_kv.session.generate import Writer
from sonic_kv.session.logprobs import logprob_of
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.reply import Written
from sonic_kv.session.sampling import NAN_LOGITS, sampler_of
from sonic_kv.session.stats import SessionStats, stats_of
from sonic_kv.session.work import Decode, Feed, Next, Operation, choose

UNLIMITED = (Budget(), Budget(compression_ratio=0.0))


@dataclass
class Dialogue:
    """A dialogue on a model. A failed operation, or one that is called off, leaves it as it was.

    Attributes:
        compressor: the model, how segments are kept, and by which policy.
        budget: limit of the cache.
        sampling: how replies are decoded unless an operation says otherwise.
        messages: all that was said, the system prompt first if there is one.
        token_ids: the transcript: all tokens that were fed.
        chat_template_kwargs: what the chat template is told beside the messages.
        busy: an operation is under way.
    """

    compressor: Compressor
    budget: Budget
    sampling: SamplingConfig
    cache: SessionCache
    messages: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    busy: bool = False

    @classmethod
    def new(
        cls,
        compressor: Compressor,
        budget: Budget | None = None,
        sampling: SamplingConfig | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "Dialogue":
        """A dialogue of no tokens yet.

        Raises:
            ConfigError: an option is of another type, or not for the chat template.
        """
        model = compressor.model
        budget = expect(default_budget(model.adapter) if budget is None else budget, Budget, "budget")
        sampling = expect(SamplingConfig() if sampling is None else sampling, SamplingConfig, "sampling")
        told = model.format_told(chat_template_kwargs or {}).options
        return cls(compressor, budget, sampling, compressor.new_cache(), chat_template_kwargs=told)

    @property
    def model(self) -> SonicModel:
        """Base and adapter."""
        return self.compressor.model

    @property
    def format(self) -> ChatFormat:
        """How messages become tokens."""
        return self.model.format.with_options(self.chat_template_kwargs)

    @property
    def config(self) -> SessionConfig:
        """How segments are kept."""
        return self.compressor.config

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    @property
    def stats(self) -> SessionStats:
        """Entries, bytes and segments as they are now."""
        return stats_of(self.compressor, self.cache)

    @property
    def limited(self) -> bool:
        """Whether segments are closed at all."""
        return self.budget not in UNLIMITED or self.config.bits is not None

    @property
    def full(self) -> bool:
        """Whether the open segment is to be closed before anything else is fed."""
        return self.limited and self.cache.open_length >= self.config.max_segment_tokens

    @property
    def pending(self) -> bool:
        """Whether there is a segment that `compress` would close."""
        complete = bool(self.messages) and ends_exchange(self.messages[-1])
        return self.limited and complete and self.cache.open_length >= self.config.min_segment_tokens

    def copy(self) -> "Dialogue":
        """A dialogue that goes on by itself.

        Raises:
            MessageError: an operation is under way.
        """
        self.check_idle()
        return replace(
            self, messages=list(self.messages), token_ids=list(self.token_ids), cache=self.cache.fork()
        )

    def check_idle(self) -> None:
        """Raise `MessageError` while an operation is under way; what others fed to the cache is taken back."""
        if self.busy:
            raise MessageError("a reply is still being streamed: read the stream to its end, or close it")
        self.cache.drop_newest(max(self.cache.logical_length - len(self.token_ids), 0))

    def set_budget(self, budget: Budget, *, once: bool = False) -> None:
        """Change the budget, and let the memory shrink to it; the model is not run.

        Args:
            once: the budget that holds from now on is the one that held before.

        Raises:
            BudgetError: it cannot hold the prefix.
        """
        expect(budget, Budget, "budget")
        with self.transaction():
            self.compressor.shrink(self.cache, budget)
            if not once:
                self.budget = budget

    def writer(self, sampling: SamplingConfig, room: int) -> Writer:
        """What takes a reply's tokens, for which there is room with what closes the reply.

        Raises:
            ContextLengthError: there is none.
        """
        room -= len(self.format.assistant_close())
        if room < 1:
            raise ContextLengthError(
                f"the dialogue fills the model's {self.model.max_length} positions: there is no room for a reply"
            )
        room = min(room, sampling.max_new_tokens)
        reasoning = self.format.opens_reasoning(self.messages) if self.messages else None
        tags = (
            [tag for tag, _ in self.model.format.calls.tags] if "tools" in self.chat_template_kwargs else ()
        )
        return Writer(self.model, sampling.stop, room, reasoning=reasoning, tags=tags)

    # --- operations ---------------------------------------------------------------------------

    def begin(self, system: str | None = None, slice_tokens: int | None = None) -> Operation[None]:
        """Feed what stands before the first message of a new dialogue.

        Raises:
            BudgetError: the budget cannot hold it.
        """
        if system is not None:
            self.messages += check_messages([{"role": "system", "content": system}])
        yield from self.feed_prefix(self.format.prefix(system), slice_tokens)

    def extend(self, messages: Sequence[Message], slice_tokens: int | None = None) -> Operation[None]:
        """Append messages that are already written.

        Args:
            slice_tokens: most tokens of a model run; slices begin with the message, whatever else runs.
        """
        checked = check_messages(messages)
        if checked[0]["role"] == "system" and not self.messages:
            raise MessageError("a session takes its system prompt when it is made: ChatSession(system=…)")
        with self.transaction():
            yield from self._append(checked, slice_tokens)

    def answer(self, text: str | None, sampling: SamplingConfig | None = None) -> Operation[Written]:
        """Say `text` and decode the reply; None answers a message that `extend` appended."""
        self.check_idle()
        unanswered = bool(self.messages) and self.messages[-1]["role"] in ("user", "tool")
        if unanswered is not (text is None):
            raise MessageError(
                "the last message is still unanswered: send(None) answers it"
                if unanswered
                else "there is no message to answer: give the user's text"
            )
        form = self.format
        with self.transaction() as before:
            settled = len(self.messages)
            if text is not None:
                self.messages += check_messages([{"role": "user", "content": text}])
            prompt = form.prompt(self.messages)
            written = yield from self._decode((yield from self._change(settled, prompt)), sampling)
            self.messages.append(written.message)
            yield from self._settle(before, [*prompt, *written.token_ids[:-1]])
            return written

    def draft(
        self, sampling: SamplingConfig | None = None, begun: str = "", top_logprobs: int | None = None
    ) -> Operation[Written]:
        """Decode a reply to the last message and leave it at that: what is written stays out of the messages.

        Args:
            begun: how the reply begins; what is written goes on from there.
            top_logprobs: pieces tell how likely their tokens were, and so many others in their place.
        """
        return (yield from self._decode((yield from self._asked(begun)), sampling, top_logprobs))

    def go_on(
        self, token_id: int, sampling: SamplingConfig | None = None, top_logprobs: int | None = None
    ) -> Operation[Written]:
        """Decode what follows a text that was fed as tokens, with no messages; its last token is still to be fed."""
        return (yield from self._decode([token_id], sampling, top_logprobs))

    def begin_draft(self, begun: str = "") -> Operation[int]:
        """Feed all that stands before a reply but its last token, which is returned: the reply is decoded elsewhere."""
        return (yield from self._begin((yield from self._asked(begun))))

    def feed(self, token_ids: Sequence[int], slice_tokens: int | None = None) -> Operation[None]:
        """Append tokens, closing the open segment whenever it is full and more comes."""
        self._check_room(len(token_ids))
        rest = list(token_ids)
        while rest:
            yield from self.close_if_full()
            size = slice_tokens or len(rest)
            if self.limited:
                size = min(size, self.config.max_segment_tokens - self.cache.open_length)
            yield from self._feed(rest[:size])
            rest = rest[size:]
            yield None

    def feed_prefix(self, token_ids: Sequence[int], slice_tokens: int | None = None) -> Operation[None]:
        """Feed tokens that are never compressed; then the first segment is open.

        Raises:
            BudgetError: the budget cannot hold them.
        """
        self._check_room(len(token_ids))
        size = slice_tokens or max(len(token_ids), 1)
        for start in range(0, len(token_ids), size):
            yield from self._feed(list(token_ids[start : start + size]))
            yield None
        self.cache.mark_prefix()
        self.compressor.shrink(self.cache, self.budget)

    def close_if_full(self) -> Operation[None]:
        """Close the open segment if it has `max_segment_tokens`."""
        if self.full:
            yield from self._close()

    def end_exchange(self) -> Operation[None]:
        """Close the open segment if it is long enough: an exchange is complete."""
        least = self.config.min_segment_tokens
        if self.config.closing == "asked":
            least = max(least, self.config.max_segment_tokens // 2)
        if self.limited and self.cache.open_length >= least:
            yield from self._close()

    def compress(self) -> Operation[None]:
        """Close the open segment."""
        with self.transaction():
            yield from self._close()

    # --- their parts --------------------------------------------------------------------------

    def _append(self, messages: Sequence[dict[str, Any]], slice_tokens: int | None = None) -> Operation[None]:
        for message in messages:
            settled = len(self.messages)
            self.messages.append(message)
            after = self.format.closed(self.messages)
            yield from self.feed((yield from self._change(settled, after)), slice_tokens)
            if ends_exchange(message):
                yield from self.end_exchange()

    def _asked(self, begun: str = "") -> Operation[list[int]]:
        """What is to be fed before a reply to the last message, or before the rest of one."""
        asked = self.format.prompt(self.messages, begun=begun)
        return (yield from self._change(len(self.messages), asked))

    def _change(self, settled: int, after: list[int]) -> Operation[list[int]]:
        """Take back what the transcript `after` has no more, and return what is to be fed.

        Args:
            settled: how many messages have been fed.
        """
        way = step(self.token_ids, after)
        if way.drop:  # or the transcript was fed as another version has it: then only the rest counts
            way = step(self.format.closed(self.messages[:settled]), after)
        if way.drop <= self.cache.open_length:
            self._take_back(way.drop)
            return way.token_ids
        return (yield from self._read_anew(after))

    def _read_anew(self, after: list[int]) -> Operation[list[int]]:
        """Begin again, as the transcript `after` has the messages now, and return what is to be fed behind the last
        complete exchange.

        The template writes otherwise what is compressed already: it drops the reasoning between calls of tools once
        the user goes on, it gives the date, or no header has a token in common with the other roles'.
        """
        encoded = self.format.encode(self.messages)
        kept = same(encoded.token_ids, after)
        self.cache.restore(self.compressor.new_cache())
        self.token_ids.clear()
        yield from self.feed_prefix(after[: min(encoded.prefix_length, kept)])
        for end in encoded.exchange_ends:
            if end <= kept:
                yield from self.feed(after[len(self.token_ids) : end])
                yield from self.end_exchange()
        return after[len(self.token_ids) :]

    def _decode(
        self, prompt: list[int], sampling: SamplingConfig | None, top_logprobs: int | None = None
    ) -> Operation[Written]:
        """Feed what is still to be fed of a prompt, and decode a reply behind it, whose last token is not fed.

        Raises:
            ContextLengthError: there is no room for it.
        """
        sampling = self.sampling if sampling is None else expect(sampling, SamplingConfig, "sampling")
        following = yield from self._last(prompt)
        writer = self.writer(sampling, self.model.room(self.cache))
        sampler = sampler_of(self.model, sampling, self.token_ids)
        text, reasoning, written = "", "", list[int]()
        while True:
            sampler.thinking = writer.thinking
            written.append(choose(following, sampler))
            logprob = None
            if top_logprobs is not None and writer.answers(written[-1]):
                logprob = logprob_of(self.model.tokenizer, following.logits, written[-1], top_logprobs)
            piece = writer.add(written[-1], logprob)
            text += piece.text
            reasoning += piece.reasoning
            yield piece
            if piece.finish_reason is not None:
                return Written(text, written, piece.finish_reason, len(prompt), reasoning)
            yield from self.close_if_full()
            following = yield from self._decode_one(written[-1])

    def _last(self, prompt: list[int]) -> Operation[Next]:
        """Feed a prompt; what may follow it. One model run, which others share if it is of one token, unless the prompt
        fills the segment on its way."""
        size = self.cache.open_length + len(prompt) - 1
        short = not self.limited or size < self.config.max_segment_tokens
        if len(prompt) > 1 and short and len(prompt) < self.model.room(self.cache):
            return (yield from self._feed(prompt))
        return (yield from self._decode_one((yield from self._begin(prompt))))

    def _begin(self, prompt: list[int]) -> Operation[int]:
        """Feed all of a prompt but its last token, and return that one."""
        self._check_room(len(prompt) + 1)
        if not prompt:  # the template has no generation prompt: the last token is fed again for its logits
            if not self.cache.open_length:
                raise MessageError("there is nothing to answer: the message has no tokens")
            prompt = self._take_back(1)
        yield from self.feed(prompt[:-1])
        yield from self.close_if_full()
        return prompt[-1]

    def _settle(self, before: "Dialogue", fed: list[int]) -> Operation[None]:
        """Complete an exchange: the cache then holds what `extend` would have put there.

        Args:
            before: the dialogue before it.
            fed: the transcript as it was fed: prompt and sampled tokens.
        """
        way = step(fed, self.format.closed(self.messages))
        if way.drop <= self.cache.open_length:
            self._take_back(way.drop)
            yield from self.feed(way.token_ids[: self.model.room(self.cache)])
            yield from self.end_exchange()
            return
        # a part of the reply is compressed already, and the transcript has other tokens there
        said = self.messages[len(before.messages) :]
        self._become(before)
        yield from self._append(said)

    def _feed(self, token_ids: list[int]) -> Operation[Next]:
        """Append tokens in one model run."""
        self.model.check_room(self.cache, len(token_ids))
        following: Next = yield Feed(self.cache, token_ids)
        if following.largest != following.largest:
            raise NumericalError(NAN_LOGITS)
        self.token_ids += token_ids
        return following

    def _decode_one(self, token_id: int) -> Operation[Next]:
        following: Next = yield Decode(self.cache, token_id)
        self.token_ids.append(token_id)
        return following

    def _take_back(self, count: int) -> list[int]:
        """Remove the newest tokens of the open segment; returns them."""
        self.cache.drop_newest(count)
        taken = self.token_ids[len(self.token_ids) - count :]
        del self.token_ids[len(self.token_ids) - count :]
        return taken

    def _check_room(self, new_tokens: int) -> None:
        """Fail early, unless closing a segment on the way may make room: then every chunk is checked."""
        if not (self.cache.compact or self.limited):
            self.model.check_room(self.cache, new_tokens)

    def _close(self) -> Operation[None]:
        yield None
        for work in self.compressor.steps(self.cache, self.token_ids, self.budget):
            yield None
            yield work
            yield None

    @contextmanager
    def transaction(self) -> Iterator["Dialogue"]:
        """Undo everything if the block fails or is abandoned; meanwhile no other operation may begin."""
        before = self.copy()
        self.busy = True
        try:
            yield before
            self.cache.pack()
        except BaseException:
            self._become(before)
            raise
        finally:
            self.busy = False

    def _become(self, other: "Dialogue") -> None:
        """Be what `other` is."""
        self.cache.restore(other.cache)
        self.budget = other.budget
        self.messages, self.token_ids = list(other.messages), list(other.token_ids)
