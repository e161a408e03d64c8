"""What clients ask for, what becomes of it, and the line they wait in."""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sonic_kv.compress.options import Budget
from sonic_kv.errors import BusyError
from sonic_kv.server.dialogue import Step, label_of
from sonic_kv.server.tools import Tools
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.generate import Piece
from sonic_kv.session.logprobs import Logprob
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.stats import SessionStats


@dataclass(frozen=True)
class View:
    """A session as it stands."""

    name: str
    messages: list[dict[str, Any]]
    budget: Budget
    stats: SessionStats
    dialogue: Dialogue  # never changed


@dataclass(frozen=True)
class Outcome:
    """What became of a request: an `error`, or the rest; `view` is None if the dialogue is full."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    logprobs: Sequence[Logprob] = ()
    reasoning: str = ""
    view: View | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Request:
    """What a client asks for: a reply to the last message, or, with `sampling` None, a session as it is.

    Attributes:
        namespace: whose sessions it can reach.
        messages: the whole dialogue; none: the named session's own.
        name: the session's name, if the client gave one.
        prompt: token ids of a text that is no dialogue, and is to be gone on with; then there are no messages.
        tools: that may be called in the reply.
        begun: how the reply begins, if the dialogue ends within it.
        chat_template_kwargs: what the chat template is told beside the messages.
        budget: compression from here on; None: as before.
        top_logprobs: the reply's pieces tell how likely their tokens were, and so many others in their place.
        on_piece, on_end: called in a thread of the worker's, `on_end` once.
        session: the name of the session that it turned out to be, once that is known.
        since, taken: when it came, and when its turn had come.
        known: steps of the named session as they were read from the store; None: not read.
    """

    namespace: str
    messages: Sequence[dict[str, Any]] = ()
    name: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    budget: Budget | None = None
    sampling: SamplingConfig | None = None
    begun: str = ""
    tools: Tools | None = None
    prompt: Sequence[int] = ()
    top_logprobs: int | None = None
    on_piece: Callable[[Piece], None] = lambda piece: None
    on_end: Callable[[Outcome], None] = lambda outcome: None
    cancelled: bool = False
    session: str | None = None
    known: Sequence[Step] | None = None
    since: float = field(default_factory=time.monotonic)
    taken: float | None = None

    @property
    def label(self) -> str:
        """The key of the session's name."""
        return label_of(self.namespace, self.name or "")


class Running(Protocol):
    """What is being done for a request."""

    @property
    def request(self) -> Request:
        """The request."""


class Waiting:
    """Requests in line, taken from every namespace in turn; `enter` and `total` are for any thread.

    A request counts from `enter` until it leaves, also while it is put aside.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._lines: OrderedDict[str, deque[Request]] = OrderedDict()  # by namespace
        self._counts = Counter[str]()  # by namespace; shared with other threads
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Request]:
        return iter([request for line in self._lines.values() for request in line])

    @property
    def total(self) -> int:
        """How many wait."""
        return self._counts.total()

    def enter(self, request: Request) -> None:
        """Count a request.

        Raises:
            BusyError: too many wait already, of all or of its namespace.
        """
        with self._lock:
            mine = self._counts[request.namespace]
            if mine >= self._most_each:
                raise BusyError(f"{mine} of your requests are waiting: try again later", yours=True)
            if self.total >= self._most:
                raise BusyError(f"{self.total} requests are waiting: try again later")
            self._counts[request.namespace] += 1

    def line_up(self, request: Request, *, first: bool = False) -> None:
        """Put a request at the end of its namespace's line, or at its front."""
        line = self._lines.setdefault(request.namespace, deque())
        if first:
            line.appendleft(request)
        else:
            line.append(request)

    def next(self, jobs: Iterable[Running], most: int, full: Container[str] = ()) -> Request | None:
        """Whose turn it is: the first request of the namespace with the fewest running, if there is room for it.

        One with none running need not wait for the others': it may be taken up beyond `most`, up to twice as many.
        """
        running = Counter(job.request.namespace for job in jobs)
        lines = [(name, line) for name, line in self._lines.items() if name not in full]
        if not lines:
            return None
        namespace, line = min(lines, key=lambda item: running[item[0]])  # in turn where equal
        room = most if running[namespace] else 2 * most
        return line[0] if running.total() < room else None

    def put_aside(self, request: Request) -> None:
        """Take a request out of the line until it lines up again."""
        line = self._lines[request.namespace]
        line.remove(request)
        if not line:
            del self._lines[request.namespace]

    def take(self, request: Request) -> None:
        """Let a request leave, taken up or refused, and turn to the next namespace."""
        request.taken = time.monotonic()
        self.leave(request)
        if request.namespace in self._lines:
            self._lines.move_to_end(request.namespace)

    def leave(self, request: Request) -> None:
        """Count a request no more, in line or aside."""
        if request in self._lines.get(request.namespace, ()):
            self.put_aside(request)
        with self._lock:
            self._counts[request.namespace] -= 1
            self._counts += Counter()  # drops those at zero

    def late(self, seconds: float) -> list[Request]:
        """Those in line for longer than that."""
        before = time.monotonic() - seconds
        return [request for request in self if request.since < before]
