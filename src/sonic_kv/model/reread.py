"""Requests to read tokens again, or once more behind a cache: data, and what came of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from sonic_kv.cache.attention import capped, outside
from sonic_kv.cache.cache import SessionCache
from sonic_kv.model.probe import Probe

ASKED = 128  # rows of a repetition whose queries are noted, at most
ROWS = 2048  # read in one forward; more gain nothing and leave a CPU's caches
T = TypeVar("T")


@dataclass
class Reread:
    """What is to be read again, and what came of it.

    Each row sees the prefix, the memory, and the open segment up to its own token (or all of it, if the
    adapter's tokens are learned), but no other row.

    Attributes:
        token_ids: of the whole open segment. (L,)
        offsets: which of them, ascending. (N,)
        encode: with the adapter: the rows are Nexus tokens.
        segment: number of the open segment, from 1.
        probe: records what the rows attend to; the columns are the cache's.
        entries: keys and values of the rows, per layer, when they have been read. Each (1, G, N, D)
    """

    cache: SessionCache
    token_ids: Sequence[int]
    offsets: Tensor
    encode: bool = False
    segment: int = 1
    probe: Probe | None = None
    entries: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many tokens are read."""
        return len(self.offsets)

    def positions(self) -> Tensor:
        """RoPE positions of the rows. (N,)"""
        return self.cache.next_position - self.cache.open_length + self.offsets

    def seen(self, whole_segment: bool) -> Tensor:
        """Which entries of the KV head that has most each row sees; for others, the last columns. (1, 1, N, S) bool"""
        size = self.cache.longest
        columns = torch.arange(size, device=self.offsets.device)
        last = size - self.cache.open_length + self.offsets[:, None]
        seen = columns < size if whole_segment else columns <= last
        return seen.expand(len(self.offsets), -1)[None, None]

    def near(self, seen: Tensor) -> Tensor:
        """What of it each row sees in layers with a sliding window. (1, 1, N, S) bool"""
        size, window = seen.shape[-1], self.cache.window
        if window is None:
            return seen
        return seen & ~outside(size - self.cache.open_length + self.offsets, size, window)


@dataclass(frozen=True)
class Asked:
    """Queries of a layer, (H, N, D), and how it attends."""

    query: Tensor
    scale: float
    softcap: float | None

    def weights(self, keys: Sequence[Tensor]) -> list[Tensor]:
        """What the queries attend to. keys of every KV head (S, D) → of its R query heads (R · N, S) float32"""
        heads = zip(self.query.chunk(len(keys)), keys, strict=True)
        logits = [(query.flatten(0, 1) @ held.T).float() * self.scale for query, held in heads]
        return [capped(of, self.softcap).softmax(-1) for of in logits]


@dataclass
class Repeat:
    """Tokens to be read behind a cache, which they do not join, and what they attend to.

    Attributes:
        token_ids: what is read; each token sees all of the cache and those before it. (T,)
        largest: per layer, when they have been read, the most that any token attends to each of the cache's entries,
            in any query head of the KV head; a head that has fewer entries begins with zeros. Each (G, S)
        asked: per layer, when they have been read, what some of them ask.
    """

    cache: SessionCache
    token_ids: Sequence[int]
    largest: list[Tensor] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many tokens are read."""
        return len(self.token_ids)

    def asking(self) -> Tensor:
        """The rows whose queries are noted, spread evenly. (N,)"""
        return torch.linspace(0, self.rows - 1, min(self.rows, ASKED)).round().long()

    def positions(self, limit: int) -> Tensor:
        """RoPE positions of the rows, of which the model has `limit`. (T,)"""
        start = max(min(self.cache.next_position, limit - self.rows), 0)
        return torch.arange(start, start + self.rows).clamp(max=limit - 1)


Reading = Reread | Repeat


def portions(items: Sequence[T], rows: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in order, as many at a time as fit into one forward; at least one."""
    waiting = list(items)
    while waiting:
        ends = accumulate(map(rows, waiting))
        count = max(1, sum(end <= ROWS for end in ends))
        yield waiting[:count]
        waiting = waiting[count:]
