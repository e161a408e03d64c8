"""How much memory dialogues take, and which give way: idle sessions are compressed, written or let go."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from sonic_kv.cache.growing import MOST_AT_ONCE, SPARE_ENTRIES, SPARE_SHARE
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ContextLengthError, MemoryLimitError
from sonic_kv.model.model import SonicModel
from sonic_kv.options import parse_bytes
from sonic_kv.server.archive import Archive
from sonic_kv.server.dialogue import Step, messages_of, told
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.shelf import Node, Shelf
from sonic_kv.session.options import SamplingConfig
from sonic_kv.text import bytes_text

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.025  # between looks at what has become idle, at least
SWEEP_SECONDS = 60.0
RETRY_SECONDS = 5.0  # after the store has failed


class MemoryLimit:
    """Keeps sessions in memory within a limit; all of it in the worker's thread.

    Args:
        shelf: sessions in memory.
        archive: where they are written to before they go.
        options: the limit, and when idle sessions are written or compressed.
        counts: what happened how often, for the metrics.
        later: has a function called in the worker's thread, from any other.
    """

    def __init__(
        self,
        shelf: Shelf,
        archive: Archive,
        options: ServeOptions,
        counts: Counter[str],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self.limit = parse_bytes(options.kv_memory)
        self.limit_each = min(self.limit, parse_bytes(options.kv_memory_per_key or options.kv_memory))
        self._shelf, self._archive, self._options = shelf, archive, options
        self._counts, self._later = counts, later
        self._leaving = 0  # bytes that go when they are written
        self._looked = self._swept = time.monotonic()
        self._store_failed = -RETRY_SECONDS

    @property
    def store_works(self) -> bool:
        """Whether there is a store that has not failed of late."""
        return self._archive.exists and time.monotonic() - self._store_failed > RETRY_SECONDS

    def note_failure(self, error: BaseException | None) -> None:
        """The store has failed: it is left alone for a while."""
        if time.monotonic() - self._store_failed > RETRY_SECONDS:
            log.error("%s", error)
        self._counts["store_errors"] += 1
        self._store_failed = time.monotonic()

    def check(self, held: int) -> None:
        """Raise `MemoryLimitError` if a dialogue that needs so many bytes can never have them."""
        if held > self.limit_each:
            raise MemoryLimitError(
                f"this dialogue may need {bytes_text(held)} of keys and values, and the server has "
                f"{bytes_text(self.limit_each)} for it: shorten it, or ask for more compression"
            )

    def make_room(self, held: int) -> bool:
        """Let idle sessions go until turns can hold so many bytes; False as long as they cannot."""
        return self._give_way(held + self._shelf.nbytes - self.limit, self._shelf.giving_way())

    def make_room_for(self, owner: str, held: int) -> bool:
        """`make_room` within what one key may have, among its own sessions."""
        if self.limit_each >= self.limit:
            return True
        mine = [node for node in self._shelf.giving_way() if node.owner == owner]
        return self._give_way(held + self._shelf.bytes_of(owner) - self.limit_each, mine)

    def _give_way(self, need: int, idle: Sequence[Node]) -> bool:
        """Free so many bytes, if these sessions have as many."""
        if need > 0 and self._options.pressure_ratio is not None:
            for node in idle:
                if need > self._leaving:
                    need -= self._press(node, self._options.pressure_ratio)
        for node in idle:
            if need > self._leaving:
                need -= self._evict(node)
        return need <= 0

    def tend(self) -> None:
        """Now and then: write the cache of one idle session, and tidy the store."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS or not self.store_works:
            return
        self._looked = now
        for node in self._shelf.idle():
            idle = now - node.used > self._options.store_after
            if idle and not (node.stored or node.superseded or node.pressed):
                self._keep(node)
                break
        if now - self._swept > SWEEP_SECONDS:
            self._swept = now
            self._archive.sweep()

    def _press(self, node: Node, ratio: float) -> int:
        """Compress an idle session further; returns the bytes that it frees."""
        if node.pressed or node.superseded or (self._archive.exists and not node.stored):
            return 0  # what is dropped must be on the store
        before = node.nbytes
        if (node.session.budget.compression_ratio or 0.0) < ratio:
            node.session = node.session.copy()
            node.session.set_budget(
                Budget(compression_ratio=ratio), once=True
            )  # what is to come is as was asked for
            self._shelf.resize(node)
            self._counts["pressed"] += 1
        node.pressed = True
        return before - node.nbytes

    def _evict(self, node: Node) -> int:
        """Let an idle session leave memory; returns the bytes freed now. If it must be written first, it
        leaves later.
        """
        if node.stored or node.superseded or node.pressed or not self.store_works:
            self._drop(node)
            return node.nbytes
        node.leaving = True
        self._leaving += node.nbytes
        self._keep(node)
        return 0

    def _drop(self, node: Node) -> None:
        self._shelf.drop(node.key)
        self._counts["evicted"] += 1

    def _keep(self, node: Node) -> None:
        """Write a session's cache to the store."""
        node.stored = True
        future = self._archive.keep(node)
        future.add_done_callback(lambda done: self._later(lambda: self._kept(node, done)))

    def _kept(self, node: Node, done: "Future[None]") -> None:
        if done.exception() is not None:
            node.stored = False
            self.note_failure(done.exception())
        if node.leaving:
            self._leaving -= node.nbytes
            node.leaving = False
            if self._shelf.get(node.key) is node:
                self._drop(node)


def most_entries(
    model: SonicModel,
    config: SessionConfig,
    steps: Sequence[Step],
    base: Node | None,
    sampling: SamplingConfig | None,
) -> int:
    """Entries that a session with these steps, and a reply, can have.

    Args:
        base: the state that it goes on from, if any.
        sampling: of the reply; None: there is to be none.

    Raises:
        ContextLengthError: there is no room for a reply.
    """
    form, messages = model.format_told(told(steps)), messages_of(steps)
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    prefix = len(form.prefix(system))
    if base is None:
        tokens, closed = len(form.closed(messages)), prefix
    else:
        tokens, closed = base.session.cache.logical_length, base.session.cache.lengths.closed
        tokens += len(form.closed(messages)) - len(form.closed(messages_of(base.steps)))
    budgets = [step for step in steps if isinstance(step, Budget)]
    ratio = min(budget.compression_ratio or 0.0 for budget in budgets)
    limited = all(budget.compression_ratio or budget.max_damage for budget in budgets)
    if sampling is not None:
        if not limited and tokens >= model.max_length:
            raise ContextLengthError(
                f"the dialogue has {tokens} tokens, and the model {model.max_length} positions: "
                "shorten it, or ask for compression"
            )
        tokens += len(form.generation_prompt()) + sampling.max_new_tokens + len(form.assistant_close())
    if ratio == 0.0:  # or what is removed depends on what is said: then nothing may be
        return tokens if limited else min(tokens, model.max_length)  # raw entries have positions of their own
    segments = tokens // config.min_segment_tokens + 1  # each keeps one entry at least
    still_open = min(tokens - closed, config.max_segment_tokens)
    return min(tokens, prefix + int((1.0 - ratio) * tokens) + segments + still_open)


def turns_bytes(model: SonicModel, entry_bytes: int, entries: Sequence[int]) -> int:
    """Bytes that turns on sessions of so many entries can come to hold.

    Args:
        entry_bytes: of one entry in all layers and heads.
    """
    # each session twice: as it is, and as it was before the message that is being fed, or as it grows
    sizes = [n + SPARE_ENTRIES + n // SPARE_SHARE for n in entries]
    # and while it decodes, where each head's free rows are, and what hides the other heads' from every query head
    heads, most = model.num_heads, MOST_AT_ONCE // model.num_heads
    query_heads: int = model.config.num_attention_heads
    row = model.num_layers * heads * query_heads * model.dtype.itemsize
    free = model.num_layers * (2 * heads + query_heads) * 8  # numbers of rows
    return 2 * sum(sizes) * entry_bytes + sum(row * min(n, most) + free for n in sizes)
