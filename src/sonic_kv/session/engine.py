"""Many replies at once on one model: rows decode together, everything else is done in slices between.

An engine belongs to one thread, and no other may run its model meanwhile.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sonic_kv.errors import ContextLengthError, NumericalError
from sonic_kv.model.batch import batch_step
from sonic_kv.model.model import SonicModel
from sonic_kv.session.generate import NAN_LOGITS, Piece, Writer, new_generator, sample
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

# Pauses after every model run, and while a segment is closed, or for a future that it needs.
Preparing = Generator[Future[Any] | None, None, ChatSession]
Work = Generator[Future[Any] | None, None, None]


@dataclass(eq=False)
class Turn:
    """One reply in the making; with `sampling` None the session is only prepared.

    Attributes:
        prepare: feeds the session up to the user's message in slices, and returns it.
        sampling: how the reply is generated.
        on_text: called with every new piece of the reply.
        on_end: called once, when `session` holds the reply, or there is an `error`.
        session: the dialogue, once prepared; None at the end if it has no room for the reply's end.
        prompt_tokens: tokens that the model has read for this reply, whenever that was.
        completion_tokens: tokens sampled.
        finish_reason: "stop" or "length".
    """

    prepare: Preparing
    sampling: SamplingConfig | None = None
    on_text: Callable[[str], None] = lambda text: None
    on_end: Callable[["Turn"], None] = lambda turn: None
    session: ChatSession | None = None
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    error: Exception | None = None
    cancelled: bool = False

    def add(self, piece: Piece) -> None:
        """Count one more token of the reply, and pass its text on."""
        self.text += piece.text
        self.completion_tokens += 1
        self.finish_reason = piece.finish_reason
        if piece.text:
            self.on_text(piece.text)


@dataclass(eq=False)
class _Row:
    """A turn that is being decoded: a draft of its session, and the token to feed next."""

    turn: Turn
    draft: ChatSession
    token: int
    writer: Writer
    generator: torch.Generator | None


class Engine:
    """Makes the replies of several turns at once.

    What a reply leaves in its session is fed from its text, as `ChatSession.extend` does, and not taken
    over from decoding: it depends on the dialogue alone, whatever else ran at the same time.

    Args:
        model: base and adapter.
        slice_tokens: most tokens of a model run between two decode steps.
    """

    def __init__(self, model: SonicModel, slice_tokens: int) -> None:
        self.model, self._slice = model, slice_tokens
        self._rows: list[_Row] = []
        self._work: deque[tuple[Turn, Work]] = deque()
        self._parked: list[tuple[Future[Any], Turn, Work]] = []  # until a future is done

    def start(self, turn: Turn) -> None:
        """Take up a turn; `step` advances it."""
        self._work.append((turn, self._begin(turn)))

    def step(self) -> bool:
        """Decode one token of every row, and do other work for as long as that took: at least one slice.

        Returns:
            whether anything can go on now; turns may be left that wait for a future.
        """
        self._unpark()
        self._drop_cancelled()
        start = time.perf_counter()
        self._decode()
        end = 2 * time.perf_counter() - start
        self._advance()
        while self._work and time.perf_counter() < end:
            self._advance()
        return bool(self._rows or self._work)

    def run(self) -> None:
        """Until every turn has ended."""
        while self.step() or self._parked:
            if not (self._rows or self._work):
                wait([self._parked[0][0]])

    @property
    def decoding(self) -> int:
        """Rows of the batch."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches that are decoded on."""
        return sum(row.draft.cache.nbytes for row in list(self._rows))

    def close(self) -> None:
        """Let go of what the engine holds beside the model."""

    def caches(self) -> Iterator[object]:
        """What holds keys and values for turns that are under way, beside their sessions."""
        for row in self._rows:
            yield row.draft.cache

    def _begin(self, turn: Turn) -> Work:
        session = yield from turn.prepare
        turn.session = session
        if turn.sampling is None:
            self._end(turn)
            return
        draft, token = yield from session.drafting()
        turn.prompt_tokens = draft.cache.logical_length + 1
        yield None
        # the closing of the reply must fit behind it
        room = self.model.room(draft.cache) - 1 - len(self.model.format.assistant_close())
        if room < 1:
            raise ContextLengthError(
                f"the dialogue fills the model's {self.model.max_length} positions: there is no room for a reply"
            )
        writer = Writer(self.model, turn.sampling.stop, min(turn.sampling.max_new_tokens, room))
        yield from self._replying(turn, turn.sampling, draft, token, writer)

    def _replying(
        self, turn: Turn, sampling: SamplingConfig, draft: ChatSession, token: int, writer: Writer
    ) -> Iterable[Future[Any] | None]:
        """Have the reply decoded, and then settled: here by a row of the batch.

        Args:
            draft: holds the dialogue up to `token`, which is fed next.
        """
        generator = new_generator(self.model, sampling) if sampling.temperature else None
        self._join(_Row(turn, draft, token, writer, generator))
        return ()

    def _join(self, row: _Row) -> None:
        if not row.turn.cancelled:
            self._rows.append(row)

    def _leave(self, number: int) -> None:
        self._rows[number] = self._rows[-1]
        self._rows.pop()

    def _decode(self) -> None:
        if not self._rows:
            return
        try:
            caches = [row.draft.cache for row in self._rows]
            logits = batch_step(self.model.twin, caches, [row.token for row in self._rows])
        except Exception as error:  # out of memory, most likely: no row can go on
            for number in reversed(range(len(self._rows))):
                self._fail(self._rows[number].turn, error)
                self._leave(number)
            return
        best, greedy = (found.tolist() for found in logits.max(-1))
        for number in reversed(range(len(self._rows))):  # where one leaves, the last has had its turn
            row = self._rows[number]
            try:
                if not abs(best[number]) < torch.inf:
                    raise NumericalError(NAN_LOGITS)
                token = greedy[number] if row.generator is None else self._draw(row, logits[number])
                self._write(number, row, token)
            except Exception as error:
                self._fail(row.turn, error)
                self._leave(number)

    def _draw(self, row: _Row, logits: Tensor) -> int:
        assert row.turn.sampling is not None
        return int(sample(logits[None], row.turn.sampling, row.generator))

    def _write(self, number: int, row: _Row, token: int) -> None:
        """Take a row's new token; it leaves the batch with its last one, or to close a segment."""
        turn, draft = row.turn, row.draft
        draft.token_ids.append(row.token)
        row.token = token
        turn.add(row.writer.add(token))
        if turn.finish_reason is not None:
            self._leave(number)
            self._work.append((turn, self._settle(turn)))
            return
        if draft.limited and draft.cache.open_length >= draft.config.max_segment_tokens:
            self._leave(number)
            self._work.append((turn, self._rejoin(row)))

    def _rejoin(self, row: _Row) -> Work:
        yield from row.draft.closing_if_full()
        self._join(row)

    def _settle(self, turn: Turn) -> Work:
        """Put the finished reply into the session."""
        assert turn.session is not None
        reply = {"role": "assistant", "content": turn.text}
        try:
            yield from turn.session.extending([reply], self._slice)
        except ContextLengthError:  # its text takes more tokens than were sampled: the dialogue is at its end
            turn.session = None
        self._end(turn)

    def _advance(self) -> None:
        """One slice of the work that has waited longest."""
        if not self._work:
            return
        turn, work = self._work.popleft()
        try:
            future = next(work)
        except StopIteration:
            return
        except Exception as error:
            self._fail(turn, error)
            return
        if future is None:
            self._work.append((turn, work))
        else:
            self._parked.append((future, turn, work))

    def _unpark(self) -> None:
        for item in [item for item in self._parked if item[0].done() or item[1].cancelled]:
            self._parked.remove(item)
            self._work.append(item[1:])

    def _drop_cancelled(self) -> None:
        for number in reversed(range(len(self._rows))):
            if self._rows[number].turn.cancelled:
                turn = self._rows[number].turn
                self._leave(number)
                self._end(turn)
        dropped = [item for item in self._work if item[0].cancelled]
        for turn, work in dropped:
            self._work.remove((turn, work))
            with suppress(Exception):
                work.close()
            self._end(turn)

    def _fail(self, turn: Turn, error: Exception) -> None:
        turn.error = error
        self._end(turn)

    def _end(self, turn: Turn) -> None:
        turn.on_end(turn)
