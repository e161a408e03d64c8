"""Next tokens: `generate_step` → `stream_generate` → `generate`, for one dialogue or a batch."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from sonic_kv.cache.cache import SessionCache
from sonic_kv.errors import ConfigError
from sonic_kv.model.batch import batch_step
from sonic_kv.model.model import SonicModel, check_model
from sonic_kv.options import expect
from sonic_kv.session.logprobs import Logprob
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.reasoning import Division
from sonic_kv.session.sampling import sample, sampler_of


@dataclass(frozen=True)
class Generation:
    """A finished reply: its text, the tokens it was sampled as, and why it ended ("stop" or "length")."""

    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True)
class Piece:
    """One step of one row: new text (may be empty), the token, why the reply ended, if it did, and new reasoning.

    Attributes:
        logprobs: of the tokens whose text has become certain, if they are asked for and of the answer.
    """

    text: str
    token_id: int
    finish_reason: str | None = None
    reasoning: str = ""
    logprobs: tuple[Logprob, ...] = ()


@torch.no_grad()
def generate_step(
    model: SonicModel,
    prompts: Sequence[Sequence[int]],
    caches: Sequence[SessionCache],
    sampling: SamplingConfig,
) -> Generator[list[int], None, None]:
    """Feed each prompt to its cache, then yield one token a row, endlessly: close it to stop.

    A yielded token is fed when the next one is asked for.

    Args:
        prompts: new tokens of each dialogue, none empty.
        caches: what each dialogue has already fed; lengths may differ.
    """
    _check(model, prompts, caches, sampling)
    samplers = [sampler_of(model, sampling, prompt) for prompt in prompts]
    logits = torch.stack([model.feed(cache, ids) for cache, ids in zip(caches, prompts, strict=True)])
    if len(caches) == 1:
        while True:
            tokens = sample(logits, samplers)
            yield tokens
            logits = model.feed(caches[0], tokens)[None]
    while True:
        tokens = sample(logits, samplers)
        yield tokens
        logits = batch_step(model.twin, caches, tokens, model.graph)


def _check(model: object, prompts: object, caches: object, sampling: object) -> None:
    """Raise `ConfigError` unless these are what `generate` takes."""
    vocabulary = check_model(model).config.vocab_size
    if sampling is not None:
        expect(sampling, SamplingConfig, "sampling")
    if not _is_list(prompts, lambda row: _is_list(row, lambda i: isinstance(i, int) and 0 <= i < vocabulary)):
        raise ConfigError(
            "generate needs at least one prompt, and every prompt at least one token: a list of lists of ids below "
            f"{vocabulary}, as tokenizer(texts).input_ids is"
        )
    if caches is not None and not (
        _is_list(caches, lambda cache: isinstance(cache, SessionCache)) and len(caches) == len(prompts)
    ):
        raise ConfigError(
            "generate needs a cache for every prompt: a list of SessionCache, as session.cache is one"
        )


def _is_list(value: object, is_item: Callable[[object], bool]) -> TypeGuard[Sequence[Any]]:
    """Whether there is a sequence with items, all of that kind."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return bool(value) and all(map(is_item, value))


def detokenize(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of a reply's tokens: special ones left out, spaces as they are."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Detokenizer:
    """Text of a growing list of tokens, without half characters and without stop texts.

    Attributes:
        certain: characters of the text so far that no stop text can take back.
        stopped: a stop text has ended it.
    """

    def __init__(self, model: SonicModel, stop: Sequence[str]) -> None:
        self._tokenizer = model.tokenizer
        self._stop = tuple(stop)
        self._longest = max((len(text) for text in self._stop), default=0)
        self._ids: list[int] = []
        self._context = 0  # first token of the decoding window
        self._read = 0  # tokens whose text is known
        self._held = ""  # text that may be the beginning of a stop text
        self.certain = 0
        self.stopped = False

    @property
    def length(self) -> int:
        """Characters of the text so far."""
        return self.certain + len(self._held)

    def add(self, token_id: int) -> str:
        """Text that has become certain with this token."""
        self._ids.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """What is left at the end of the reply."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = detokenize(self._tokenizer, self._ids[self._context : self._read])
        text = detokenize(self._tokenizer, self._ids[self._context :])
        new = text[len(before) :]
        # A character split over tokens decodes to U+FFFD until it is complete. A token without text
        # does not move the window: what follows may need the token before it for its space.
        if not final and text.endswith("\ufffd"):
            new = ""
        if new:
            self._context, self._read = self._read, len(self._ids)
        self._held += new
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:  # several may end with the same token: the reply ends where the first begins
            self.stopped = True
            self._held = self._held[: min(found)]
        keep = 0
        if not (final or self.stopped):
            sizes = range(min(self._longest, len(self._held)), 0, -1)
            keep = next((n for n in sizes if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.certain += len(certain)
        return certain


def _hidden(tokenizer: Any, tags: Sequence[str]) -> dict[int, str]:
    """Those of the tags that are special tokens: they have no text when they are decoded."""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()} if tags else {}
    return {added[tag]: tag for tag in tags if tag in added and not detokenize(tokenizer, [added[tag]])}


class Writer:
    """One reply as its tokens come.

    Args:
        room: most tokens that it may have.
        reasoning: the prompt has opened the reply's reasoning; None: it is no reply, but any text, without reasoning.
        tags: of what else is read from the reply.
    """

    def __init__(
        self,
        model: SonicModel,
        stop: Sequence[str],
        room: int,
        *,
        reasoning: bool | None = False,
        tags: Sequence[str] = (),
    ) -> None:
        around = None if reasoning is None else model.format.reasoning
        self._division = Division(around, bool(reasoning))
        self._tags = _hidden(model.tokenizer, (*(around or ()), *tags))
        self._stop_ids = model.stop_ids
        ends = () if reasoning is None else model.format.stop
        self._text = Detokenizer(model, (*ends, *stop))
        self._room = room
        self._logprobs: list[tuple[int, Logprob]] = []  # of tokens, and where their text begins
        self.count = 0

    @property
    def left(self) -> int:
        """Tokens that it may still have."""
        return self._room - self.count

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._division.inside

    def answers(self, token_id: int) -> bool:
        """Whether this token, if it comes next, is of the answer: it ends no reply, and is no reasoning."""
        return token_id not in self._stop_ids and not self.thinking

    def add(self, token_id: int, logprob: Logprob | None = None) -> Piece:
        """What this token adds to the text, and whether it ends the reply. Its `logprob` is told with its text."""
        self.count += 1
        self._logprobs += [] if logprob is None else [(self._text.length, logprob)]
        text, reason = self._next(token_id)
        reasoning, answer = self._division.add(text, final=reason is not None)
        return Piece(answer, token_id, reason, reasoning, self._certain(whole=reason is not None))

    def _certain(self, whole: bool) -> tuple[Logprob, ...]:
        """Those that are to be told by now: of tokens whose text begins in what is certain, or of all that are left."""
        end = self._text.certain if not whole or self._text.stopped else self._text.certain + 1
        told = tuple(logprob for start, logprob in self._logprobs if start < end)
        self._logprobs = self._logprobs[len(told) :]
        return told

    def _next(self, token_id: int) -> tuple[str, str | None]:
        if token_id in self._stop_ids:
            return self._text.finish(), "stop"
        text = self._text.add(token_id) + self._tags.get(token_id, "")
        if not self._text.stopped and self.count >= self._room:
            text += self._text.finish()
            return text, "stop" if self._text.stopped else "length"
        return text, "stop" if self._text.stopped else None


def stream_generate(
    model: SonicModel,
    prompts: Sequence[Sequence[int]],
    caches: Sequence[SessionCache] | None = None,
    sampling: SamplingConfig | None = None,
) -> Generator[list[Piece | None], None, None]:
    """Yield, at each step, a `Piece` for every row that is still going (None: that row has ended).

    When it ends, or is closed, every cache holds its prompt and its reply except the reply's last
    token (which was sampled, not fed).

    Args:
        caches: of the dialogues so far; None: fresh ones.
    """
    _check(model, prompts, caches, sampling)
    sampling = SamplingConfig() if sampling is None else sampling
    caches = [model.new_cache() for _ in prompts] if caches is None else list(caches)
    for cache, prompt in zip(caches, prompts, strict=True):
        model.check_room(cache, len(prompt) + 1)
    writers = [
        Writer(model, sampling.stop, min(sampling.max_new_tokens, model.room(cache) - len(prompt)))
        for cache, prompt in zip(caches, prompts, strict=True)
    ]
    done = [False] * len(prompts)
    try:
        with closing(generate_step(model, prompts, caches, sampling)) as steps:
            for tokens in steps:
                pieces: list[Piece | None] = []
                for row, token in enumerate(tokens):
                    if done[row]:
                        pieces.append(None)
                        continue
                    piece = writers[row].add(token)
                    done[row] = piece.finish_reason is not None
                    pieces.append(piece)
                yield pieces
                if all(done):
                    return
    finally:
        # rows that ended early were fed on for the others' sake
        fed = max(writer.count for writer in writers)
        for cache, writer in zip(caches, writers, strict=True):
            cache.drop_newest(fed - writer.count)


def generate(
    model: SonicModel,
    prompts: Sequence[Sequence[int]],
    caches: Sequence[SessionCache] | None = None,
    sampling: SamplingConfig | None = None,
) -> list[Generation]:
    """The replies to `prompts`, as `stream_generate` yields them piece by piece."""
    _check(model, prompts, caches, sampling)
    texts: list[str] = [""] * len(prompts)
    tokens: list[list[int]] = [[] for _ in prompts]
    reasons = ["length"] * len(prompts)
    for pieces in stream_generate(model, prompts, caches, sampling):
        for row, piece in enumerate(pieces):
            if piece is not None:
                texts[row] += piece.text
                tokens[row].append(piece.token_id)
                reasons[row] = piece.finish_reason or reasons[row]
    return [Generation(*row) for row in zip(texts, tokens, reasons, strict=True)]
