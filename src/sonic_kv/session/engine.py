"""Many replies at once on one model: tokens of all are decoded together, other work is done in slices between.

An engine belongs to one thread.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from sonic_kv.errors import ContextLengthError
from sonic_kv.model.batch import batch_step
from sonic_kv.model.messages import Message
from sonic_kv.model.model import SonicModel, check_model
from sonic_kv.model.reread import Reading
from sonic_kv.options import expect, fits, require
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.generate import Piece
from sonic_kv.session.logprobs import Logprob
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.reply import reply_message
from sonic_kv.session.work import Decode, Feed, Next, Work, perform

# As an operation of a dialogue, and may wait for a future.
Preparing = Generator[Work | Piece | Future[Any] | None, Any, Dialogue]
Turning = Generator[Work | Piece | Future[Any] | None, Any, None]


@dataclass(eq=False)
class Turn:
    """One reply in the making; with `sampling` None the dialogue is only prepared.

    Attributes:
        prepare: the operation that feeds the dialogue up to the user's message, and returns it.
        sampling: how the reply is generated.
        begun: how the reply begins, if that is given; `text` goes on from there.
        reply: what the reply becomes as a message of its dialogue, of its text and its reasoning.
        last: the last token of a text that is no dialogue, and is to be gone on with; then nothing is kept.
        top_logprobs: pieces tell how likely their tokens were, and so many others in their place.
        on_piece: called with every new piece of the reply that says something.
        on_end: called once, when `session` holds the reply, or there is an `error`.
        session: the dialogue, once prepared; None at the end if it has no room for the reply's end.
        prompt_tokens: tokens that the model has read for this reply, whenever that was.
        completion_tokens: tokens sampled.
        finish_reason: "stop" or "length".
        reasoning: what stands before the answer, `text`.
        logprobs: of the answer's tokens, if they are asked for.
    """

    prepare: Preparing
    sampling: SamplingConfig | None = None
    begun: str = ""
    reply: Callable[[str, str], Message] = reply_message
    last: int | None = None
    top_logprobs: int | None = None
    on_piece: Callable[[Piece], None] = lambda piece: None
    on_end: Callable[["Turn"], None] = lambda turn: None
    session: Dialogue | None = None
    text: str = ""
    reasoning: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    error: Exception | None = None
    cancelled: bool = False

    def add(self, piece: Piece) -> None:
        """Count one more token of the reply, and pass its text on."""
        self.text += piece.text
        self.reasoning += piece.reasoning
        self.logprobs += piece.logprobs
        self.completion_tokens += 1
        self.finish_reason = piece.finish_reason
        if piece.text or piece.reasoning or piece.logprobs:
            self.on_piece(piece)


@dataclass(eq=False)
class _Task:
    """A turn, its operation, and what that waits for."""

    turn: Turn
    operation: Turning
    work: Feed | Reading | None = None


class Engine:
    """Makes the replies of several turns at once.

    What a reply leaves in its dialogue is fed from its text, as `Dialogue.extend` does, and not taken over from
    decoding: it depends on the dialogue alone, bit for bit, whatever else ran at the same time.

    Args:
        model: base and adapter.
        slice_tokens: most tokens of a model run between two decode steps.
    """

    def __init__(self, model: SonicModel, slice_tokens: int) -> None:
        require(
            fits(slice_tokens, int) and slice_tokens > 0, f"slice_tokens={slice_tokens!r} must be at least 1"
        )
        self.model, self._slice = check_model(model), slice_tokens
        self._rows: list[tuple[_Task, Decode]] = []  # of the next decode step
        self._tasks: deque[_Task] = deque()  # other work, that which has waited longest first
        self._parked: list[tuple[_Task, Future[Any]]] = []  # until a future is done
        self._decoding: list[Decode] = []

    def start(self, turn: Turn) -> None:
        """Take up a turn; `step` advances it."""
        expect(turn, Turn, "turn")
        self._tasks.append(_Task(turn, self._make(turn)))

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
        while self._tasks and time.perf_counter() < end:
            self._advance()
        self._decoding = [work for _, work in self._rows]
        return bool(self._rows or self._tasks)

    def run(self) -> None:
        """Until every turn has ended."""
        while self.step() or self._parked:
            if not (self._rows or self._tasks):
                wait([self._parked[0][1]])

    @property
    def decoding(self) -> int:
        """Rows of the batch."""
        return len(self._decoding)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches that are decoded on."""
        return sum(work.cache.nbytes for work in self._decoding)

    def close(self) -> None:
        """Let go of what the engine holds beside the model."""

    def caches(self) -> Iterator[object]:
        """What holds keys and values for turns that are under way, beside their dialogues."""
        for work in self._decoding:
            yield work.cache

    # --- a turn -------------------------------------------------------------------------------

    def _make(self, turn: Turn) -> Turning:
        turn.session = yield from turn.prepare
        if turn.sampling is not None:
            yield from self._reply(turn, turn.session.copy(), turn.sampling)
            if turn.last is not None:
                turn.session = None
            else:
                yield from self._keep(turn, turn.session)
        turn.on_end(turn)

    def _keep(self, turn: Turn, session: Dialogue) -> Turning:
        """Make the reply a part of its dialogue."""
        try:
            yield from session.extend([turn.reply(turn.begun + turn.text, turn.reasoning)], self._slice)
        except ContextLengthError:  # its text takes more tokens than were sampled: the dialogue is at its end
            turn.session = None

    def _reply(self, turn: Turn, draft: Dialogue, sampling: SamplingConfig) -> Turning:
        """Have the reply decoded: here by a row of the batch, on a draft of the dialogue."""
        if turn.last is None:
            operation = draft.draft(sampling, turn.begun, turn.top_logprobs)
        else:
            operation = draft.go_on(turn.last, sampling, turn.top_logprobs)
        with closing(operation):
            answer = None
            while True:
                try:
                    item = operation.send(answer)
                except StopIteration:
                    return
                if isinstance(item, Piece) and not turn.completion_tokens:
                    turn.prompt_tokens = draft.cache.logical_length
                answer = yield item

    # --- work ---------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One token of every row."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            caches, token_ids = zip(*((work.cache, work.token_id) for _, work in rows), strict=True)
            logits = batch_step(self.model.twin, caches, token_ids, self.model.graph)
            best, greedy = (found.tolist() for found in logits.max(-1))
        except Exception as error:  # out of memory, most likely: no row can go on
            for task, _ in rows:
                self._fail(task, error)
            return
        for number, (task, _) in enumerate(rows):
            self._resume(task, Next(logits[number], best[number], greedy[number]))

    def _advance(self) -> None:
        """One slice: the work that has waited longest, by itself. What is kept must not depend on the others."""
        if not self._tasks:
            return
        task = self._tasks.popleft()
        try:
            answer = None if task.work is None else perform(self.model, task.work)
        except Exception as error:
            self._fail(task, error)
            return
        self._resume(task, answer)

    def _resume(self, task: _Task, answer: Next | None = None) -> None:
        """Let an operation go on with the answer to what it asked for, and take up what it asks for next."""
        try:
            item = task.operation.send(answer)
            while isinstance(item, Piece):
                task.turn.add(item)
                item = task.operation.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._fail(task, error)
            return
        if isinstance(item, Decode):
            self._rows.append((task, item))
        elif isinstance(item, Future):
            self._parked.append((task, item))
        else:
            task.work = item
            self._tasks.append(task)

    def _fail(self, task: _Task, error: Exception) -> None:
        task.operation.close()  # which undoes what it has begun
        task.turn.error = error
        task.turn.on_end(task.turn)

    def _unpark(self) -> None:
        for item in [item for item in self._parked if item[1].done() or item[0].turn.cancelled]:
            self._parked.remove(item)
            task = item[0]
            task.work = None
            self._tasks.append(task)

    def _drop_cancelled(self) -> None:
        dropped = [task for task in (*(task for task, _ in self._rows), *self._tasks) if task.turn.cancelled]
        self._rows = [row for row in self._rows if not row[0].turn.cancelled]
        for task in dropped:
            if task in self._tasks:
                self._tasks.remove(task)
            task.operation.close()
            task.turn.on_end(task.turn)
