"""The thread that owns the model: takes requests up in turn, as memory allows."""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial

from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import BusyError, ConfigError, ContextLengthError, NotFoundError, StoreError
from sonic_kv.model.model import SonicModel
from sonic_kv.server.answers import is_failure
from sonic_kv.server.archive import Archive
from sonic_kv.server.dialogue import (
    Step,
    Summary,
    bounded,
    chain,
    continued,
    digest,
    label_of,
    messages_of,
    owner_of,
    summary,
    told,
)
from sonic_kv.server.jobs import Job, pass_on, view_of
from sonic_kv.server.memory import MemoryLimit, most_entries, turns_bytes
from sonic_kv.server.options import ServeOptions
from sonic_kv.server.preparing import Preparer
from sonic_kv.server.requests import Outcome, Request, Waiting
from sonic_kv.server.shelf import Node, Shelf
from sonic_kv.server.store import Store
from sonic_kv.server.tools import message_of
from sonic_kv.server.vllm import VllmEngine
from sonic_kv.session.engine import Engine, Turn

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.25  # between looks at what has become idle, while there is nothing to do


class _ShareTakenError(Exception):
    """The key's own dialogues take all that one key may have: its request waits until others of it end."""


class Worker:
    """Runs requests on one model, in a thread of its own.

    Sessions in memory are a cache of a function: a state depends on its steps alone. What is not in memory
    is read from the store, or made again from the messages, which takes longer and gives the same.

    Args:
        model: base and adapter.
        config: how sessions keep segments.
        budget: compression of a dialogue whose requests ask for none.
        options: limits.
        store: where sessions outlive the process; None: nowhere.

    Raises:
        ConfigError: the budget is neither a ratio nor in nats, or nats are not known.
    """

    def __init__(
        self,
        model: SonicModel,
        config: SessionConfig,
        budget: Budget,
        options: ServeOptions,
        store: Store | None,
    ) -> None:
        if budget.max_entries is not None or budget.max_bytes is not None:
            raise ConfigError(
                "serve compresses by ratio or damage: give --compression-ratio, and --kv-memory for the sum"
            )
        self.model, self.config, self.options = model, config, options
        self.shelf = Shelf()
        self.counts = Counter[str]()
        self.default_budget = bounded(budget, options.min_compression_ratio)
        compressor = Compressor(model, config)
        compressor.check(self.default_budget)
        self.entry_bytes = compressor.bytes_per_entry()
        adapter = None if model.adapter is None else model.adapter.digest()
        kept = {**asdict(config), "policy": compressor.policy.name}  # whatever the default is
        self._scope = digest(
            model.fingerprint(), adapter, kept, options.slice_tokens, *filter(None, [model.format.options])
        )
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._archive = Archive(store, self._wake)
        self._memory = MemoryLimit(self.shelf, self._archive, options, self.counts, self._inbox.put)
        self._preparer = Preparer(model, config, self._archive, self.counts, options.slice_tokens)
        self._waiting = Waiting(options.max_waiting, options.max_waiting_per_key)
        self._jobs: dict[Turn, Job] = {}
        self.engine = self._new_engine()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sonic-kv-model", daemon=True)

    def _new_engine(self) -> Engine:
        if self.options.engine == "vllm":
            return VllmEngine(self.model, self.config, self.options, self._wake)
        return Engine(self.model, self.options.slice_tokens)

    # --- called from other threads ------------------------------------------------------------

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    def stop(self) -> None:
        """`halt`, and wait until all is done."""
        self.halt()
        self._thread.join()

    def halt(self) -> None:
        """End what is under way with an error, write what is not on the store yet, and stop."""
        self._stopping = True
        self._wake()

    @property
    def alive(self) -> bool:
        """Whether requests are being taken."""
        return self._thread.is_alive() and not self._stopping

    @property
    def _shared(self) -> bool:
        """Whether other processes use the store too: what is in memory may be behind it."""
        return self.options.engine == "ray"

    @property
    def ready(self) -> bool:
        """Whether what is kept on the store can be reached, as far as is known."""
        return not self._archive.hangs

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            BusyError: too many wait already, or the server is stopping.
        """
        if not self.alive:
            raise BusyError("the server is stopping")
        if request.name is not None and self._archive.hangs:
            raise StoreError("the store does not answer: try again in a few seconds")
        self._waiting.enter(request)
        self._inbox.put(lambda: self._waiting.line_up(request))

    def sessions(self, namespace: str) -> "Future[list[Summary]]":
        """The named sessions of a namespace, the newest first."""
        owner = owner_of(namespace)
        mine = [] if self._shared else [node for node in self.shelf if node.label.startswith(owner)]
        return self._archive.listed(owner, {node.name: summary(node.name, node.steps) for node in mine})

    def erase(self, namespace: str, name: str) -> "Future[bool]":
        """Forget a session, and end what is under way in it; whether there was one."""
        erased: Future[bool] = Future()
        self._inbox.put(lambda: self._erase(namespace, name, erased))
        return erased

    def _erase(self, namespace: str, name: str, erased: "Future[bool]") -> None:
        for turn, job in self._jobs.items():
            turn.cancelled = turn.cancelled or (job.request.namespace == namespace and job.name == name)
        label = label_of(namespace, name)
        found = self.shelf.erase(label)
        self._archive.erase(label, name, found).add_done_callback(partial(pass_on, erased))

    def cancel(self, request: Request) -> None:
        """Drop a request whose client has gone."""
        self._inbox.put(lambda: self._cancel(request))

    def gauges(self) -> dict[str, float]:
        """Figures for the metrics, each read by itself while the worker runs."""
        return {
            "kv_bytes": self.shelf.nbytes + self.engine.nbytes + self._feeding(),
            "kv_limit_bytes": self._memory.limit,
            "sessions_resident": len(self.shelf),
            "requests_waiting": self._waiting.total,
            "requests_running": len(self._jobs),
            "rows_decoding": self.engine.decoding,
        }

    def _feeding(self) -> int:
        """Bytes of the sessions that are being fed, and are neither on the shelf nor decoding yet."""
        fed = [job.session for turn, job in list(self._jobs.items()) if turn.session is None]
        return sum(session.cache.nbytes for session in fed if session is not None)

    def _wake(self) -> None:
        self._inbox.put(lambda: None)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        busy = False
        while not self._stopping:
            self._read_inbox(wait=not busy)
            self._admit()
            busy = self.engine.step()
            self._memory.tend()
        self._finish()

    def _read_inbox(self, wait: bool) -> None:
        try:
            self._inbox.get(block=wait, timeout=LOOK_SECONDS)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _admit(self) -> None:
        """Take up requests, from every namespace in turn, as long as there is room for the next."""
        for late in self._waiting.late(self.options.queue_timeout):
            self._waiting.leave(late)
            late.on_end(Outcome(error=BusyError("the server had no room in time: try again later")))
        full, most = set[str](), self.options.max_batch
        while (request := self._waiting.next(self._jobs.values(), most, full)) is not None:
            if self._unread(request):
                self._read(request)
                continue
            try:
                if not self._take_up(request):
                    return
            except _ShareTakenError:
                full.add(request.namespace)
                continue
            except Exception as error:
                request.on_end(Outcome(error=error))
            self._waiting.take(request)

    def _unread(self, request: Request) -> bool:
        """Whether a named session is to be looked up on the store."""
        if request.name is None or request.known is not None or not self._archive.exists:
            return False
        return self._shared or self.shelf.newest(request.label) is None

    def _read(self, request: Request) -> None:
        """Look a named session up; meanwhile others are taken up, and it still counts as waiting."""
        self._waiting.put_aside(request)
        reading = self._archive.steps(request.label)
        reading.add_done_callback(lambda done: self._inbox.put(lambda: self._have_read(request, done)))

    def _have_read(self, request: Request, done: "Future[list[Step] | None]") -> None:
        failed = done.exception()
        if failed is not None:
            self._memory.note_failure(failed)
            error: Exception = StoreError(str(failed))
        elif request.cancelled or self._stopping:
            error = BusyError("the server is stopping: try again later")
        else:
            request.known = done.result() or ()
            if not request.known:  # another process has erased it, perhaps
                self.shelf.erase(request.label)
            self._waiting.line_up(request, first=True)
            return
        self._waiting.leave(request)
        request.on_end(Outcome(error=error))

    def _cancel(self, request: Request) -> None:
        request.cancelled = True
        if request in self._waiting:
            self._waiting.leave(request)
            request.on_end(Outcome(error=BusyError("cancelled")))
        for turn, job in self._jobs.items():
            turn.cancelled = turn.cancelled or job.request is request

    # --- taking up ----------------------------------------------------------------------------

    def _take_up(self, request: Request) -> bool:
        """Start a request if its memory can be had; else it goes on waiting, and False is returned.

        Raises:
            ContextLengthError, MemoryLimitError, NotFoundError
        """
        if request.prompt:
            return self._start(self._prompting(request))
        newest = None if request.name is None else self.shelf.newest(request.label)
        known = request.known or (() if newest is None else newest.steps)
        if not known and not request.messages:
            raise NotFoundError(f"there is no session {request.name!r}")
        steps = self._steps(request, known)
        keys = chain(request.namespace, self._scope, steps)
        keys = keys if request.sampling is None else keys[:-1]  # a reply answers a new message
        base = self.shelf.longest(keys)
        if base is not None and base.key == keys[-1] and request.sampling is None:  # nothing is to be done
            base.used = time.monotonic()
            request.on_end(Outcome(view=view_of(base)))
            return True
        entries = most_entries(self.model, self.config, steps, base, request.sampling)
        entries += len(request.begun.encode())  # no token is less than a byte
        return self._start(Job(request, base, entries, steps, keys))

    def _prompting(self, request: Request) -> Job:
        """A text that is to be gone on with.

        Raises:
            ContextLengthError
        """
        room = self.model.max_length - len(request.prompt)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(request.prompt)} tokens, and the model {self.model.max_length} positions"
            )
        assert request.sampling is not None
        entries = len(request.prompt) + min(room, request.sampling.max_new_tokens)
        return Job(request, None, entries, [], [])

    def _start(self, job: Job) -> bool:
        """Start what has been asked for if its memory can be had; else False is returned.

        Raises:
            MemoryLimitError: it never can.
            _ShareTakenError: not before its key's other requests have ended.
        """
        request, base, entries = job.request, job.base, job.entries
        bytes_of = partial(turns_bytes, self.model, self.entry_bytes)
        self._memory.check(bytes_of([entries]))
        jobs = [*self._jobs.values(), job]
        mine = [one.entries for one in jobs if one.request.namespace == request.namespace]
        if base is not None:
            base.users += 1  # it is not to be evicted for its own sake
        own = self._memory.make_room_for(owner_of(request.namespace), bytes_of(mine))
        if not (own and self._memory.make_room(bytes_of([one.entries for one in jobs]))):
            if base is not None:
                base.users -= 1
            if not own:
                raise _ShareTakenError
            return False
        prepare = self._preparer.prompt if request.prompt else self._preparer.prepare
        turn = Turn(
            prepare(job),
            request.sampling,
            request.begun,
            reply=lambda text, reasoning: message_of(request.tools, text),
            last=request.prompt[-1] if request.prompt else None,
            top_logprobs=request.top_logprobs,
            on_piece=request.on_piece,
            on_end=self._turn_ended,
        )
        self._jobs[turn] = job
        self.engine.start(turn)
        return True

    def _steps(self, request: Request, known: Sequence[Step]) -> list[Step]:
        """The steps of the session that a request wants to see."""
        budget = (
            None if request.budget is None else bounded(request.budget, self.options.min_compression_ratio)
        )
        if not request.messages:
            return continued(known, messages_of(known), budget, self.default_budget, told(known))
        return continued(known, request.messages, budget, self.default_budget, request.chat_template_kwargs)

    # --- a turn -------------------------------------------------------------------------------

    def _turn_ended(self, turn: Turn) -> None:
        job = self._jobs.pop(turn)
        if job.base is not None:
            job.base.users -= 1
            job.base.used = time.monotonic()
        if turn.error is not None or turn.cancelled:
            error = turn.error or BusyError("cancelled")
            if is_failure(error):
                self._distrust(job)
            job.request.on_end(Outcome(error=error))
            return
        replied = job.request.sampling is not None
        node = self._new_node(job, turn) if turn.session is not None else None
        outcome = Outcome(
            turn.text,
            turn.finish_reason,
            turn.prompt_tokens,
            job.cached_tokens,
            turn.completion_tokens,
            turn.logprobs,
            turn.reasoning,
            view=None if node is None else view_of(node),
        )
        if node is None or not self._archive.exists or (not replied and job.parent == node.key):
            job.request.on_end(outcome)
            return
        # acknowledged when it is on the store
        writing = self._archive.record(node)
        writing.add_done_callback(
            lambda done: self._inbox.put(lambda: self._acknowledge(job.request, outcome, done))
        )

    def _distrust(self, job: Job) -> None:
        """Forget the state that a failed turn went on from: it can be made again, and may be what failed."""
        base = job.base
        if base is not None and not base.users:
            self.shelf.drop(base.key)
        self._archive.forget(job.parent)

    def _acknowledge(self, request: Request, outcome: Outcome, done: "Future[None]") -> None:
        error = done.exception()
        if error is not None:
            self._memory.note_failure(error)
        if error is not None and request.name is not None:  # who names no session has all of it, and goes on
            outcome = Outcome(error=StoreError(f"the reply could not be stored: {error}"))
        request.on_end(outcome)

    def _new_node(self, job: Job, turn: Turn) -> Node:
        """Put the session as it is now on the shelf; what it went on from stays for another try."""
        assert turn.session is not None
        steps = list(job.steps)
        if turn.sampling is not None:
            steps.append(message_of(job.request.tools, turn.begun + turn.text))
        key = chain(job.request.namespace, self._scope, steps)[-1]
        there = self.shelf.get(key)
        if there is not None and job.parent == key:
            return there
        name = job.name or ""
        parent = job.grandparent if job.parent == key else job.parent
        turn.session.cache.fit()
        node = Node(key, name, label_of(job.request.namespace, name), steps, turn.session, parent)
        node.stored = job.parent == key  # just read from the store
        self.shelf.put(node)
        if job.parent not in (None, key):
            before = self.shelf.get(job.parent)
            if before is not None:
                before.superseded = True
            self.shelf.drop(job.grandparent)
            if self._memory.store_works and job.grandparent is not None:
                self._archive.forget(job.grandparent)
        return node

    def _finish(self) -> None:
        """End everything under way, and write what is not on the store yet."""
        self._read_inbox(wait=False)
        error = BusyError("the server is stopping: try again later")
        for request in self._waiting:
            request.on_end(Outcome(error=error))
        for turn, job in list(self._jobs.items()):
            turn.cancelled = True
            job.request.on_end(Outcome(error=error))
            job.request.on_end = lambda outcome: None
        self.engine.step()
        self._read_inbox(wait=False)
        if self._archive.exists:
            for node in self.shelf:
                if not (node.stored or node.superseded or node.pressed):
                    self._archive.keep(node)
        self._archive.close()
        self.engine.close()
        self._read_inbox(wait=False)
