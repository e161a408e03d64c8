"""Sessions in memory: found by key, counted in bytes, the least wanted one first to go."""

import heapq
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sonic_kv.server.dialogue import Step
from sonic_kv.session.dialogue import Dialogue


@dataclass(eq=False)
class Node:
    """The state of a dialogue after a turn. Its session is never changed: who goes on copies it.

    Attributes:
        key: of the state; what it is found by.
        name: of the session, as clients know it.
        label: the key of the session's name.
        steps: what the state is a function of.
        parent: key of the state before the newest turn.
        stored: its cache is on the store, or on its way there.
        superseded: a later turn has gone on from it; kept for a reply that is made again.
        leaving: it is being written, and leaves memory then.
        pressed: it was compressed further than its steps say, to save memory.
        users: turns under way that share its tensors.
    """

    key: str
    name: str
    label: str
    steps: Sequence[Step]
    session: Dialogue
    parent: str | None = None
    stored: bool = False
    superseded: bool = False
    leaving: bool = False
    pressed: bool = False
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    nbytes: int = 0

    def __post_init__(self) -> None:
        self.nbytes = self.session.cache.nbytes

    @property
    def owner(self) -> str:
        """Whose it is."""
        return self.label.partition("-")[0]


class Shelf:
    """The nodes in memory."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._newest: dict[str, str] = {}  # label → key
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def put(self, node: Node) -> None:
        """Add a node, in place of one with the same key; it is its session's newest."""
        self.drop(node.key)
        self._nodes[node.key] = node
        self._newest[node.label] = node.key
        self.nbytes += node.nbytes

    def drop(self, key: str | None) -> Node | None:
        """Let a node go; returns it, if it was there."""
        node = self._nodes.pop(key, None) if key is not None else None
        if node is not None:
            self.nbytes -= node.nbytes
            if self._newest.get(node.label) == key:
                del self._newest[node.label]
        return node

    def erase(self, label: str) -> bool:
        """Let all nodes of a session go; whether there were any."""
        mine = [node.key for node in self if node.label == label]
        for key in mine:
            self.drop(key)
        return bool(mine)

    def get(self, key: str | None) -> Node | None:
        """The node with this key."""
        return self._nodes.get(key) if key is not None else None

    def newest(self, label: str) -> Node | None:
        """The newest node of a session."""
        return self.get(self._newest.get(label))

    def longest(self, keys: Sequence[str]) -> Node | None:
        """The node of the longest known prefix of a chain."""
        return next((self._nodes[key] for key in reversed(keys) if key in self._nodes), None)

    def resize(self, node: Node) -> None:
        """Count a node anew whose session was exchanged for a smaller one."""
        size = node.session.cache.nbytes
        self.nbytes += size - node.nbytes
        node.nbytes = size

    def idle(self) -> list[Node]:
        """Nodes that no turn shares, the least wanted first: superseded ones, then by last use."""
        free = (node for node in self._nodes.values() if not node.users and not node.leaving)
        return sorted(free, key=lambda node: (not node.superseded, node.used))

    def giving_way(self) -> list[Node]:
        """`idle` nodes in the order in which they leave: superseded ones, then one of the owner who holds most."""
        held, lines, order = Counter[str](), defaultdict[str, deque[Node]](deque), list[Node]()
        for node in self._nodes.values():
            held[node.owner] += node.nbytes
        for node in self.idle():
            if node.superseded:
                order.append(node)
                held[node.owner] -= node.nbytes
            else:
                lines[node.owner].append(node)
        owners = [(-held[owner], owner) for owner in lines]
        heapq.heapify(owners)
        while owners:
            left, owner = owners[0]
            order.append(lines[owner].popleft())
            if lines[owner]:
                heapq.heapreplace(owners, (left + order[-1].nbytes, owner))
            else:
                heapq.heappop(owners)
        return order

    def bytes_of(self, owner: str) -> int:
        """Bytes of an owner's nodes."""
        return sum(node.nbytes for node in self._nodes.values() if node.owner == owner)
