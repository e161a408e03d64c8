"""Rows that run over tokens of an open segment again: they read the cache and do not join it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.model.attention import Probe

ROWS = 2048  # read in one forward; more gain nothing and leave a CPU's caches
T = TypeVar("T")


@dataclass
class Reread:
    """What is to be read again, and what came of it.

    Each row sees the prefix, the memory, and the open segment up to its own token (or all of it, by the
    adapter's form and scope), but no other row.

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


def portions(items: Sequence[T], rows: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in order, as many at a time as fit into one forward; at least one."""
    waiting = list(items)
    while waiting:
        ends = accumulate(map(rows, waiting))
        count = max(1, sum(end <= ROWS for end in ends))
        yield waiting[:count]
        waiting = waiting[count:]


class Rereading:
    """The attention of a forward over the rows of several readings, laid end to end.

    Args:
        seen: of each reading.
    """

    def __init__(self, requests: Sequence[Reread], seen: Sequence[Tensor], dtype: torch.dtype) -> None:
        edges = accumulate((len(request.offsets) for request in requests), initial=0)
        spans = [slice(a, b) for a, b in pairwise(edges)]
        # as SDPA adds it, made once instead of in every layer
        masks = [torch.zeros_like(s, dtype=dtype).masked_fill_(~s, -torch.inf) for s in seen]
        self._parts = list(zip(requests, spans, seen, masks, strict=True))

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor, **options: Any
    ) -> Tensor:
        outputs, layer = [], module.layer_idx
        for request, span, seen, mask in self._parts:
            own, held = query[:, :, span], request.cache.layers[layer]
            request.entries.append((key[:, :, span], value[:, :, span]))
            if request.probe is not None:
                keys, values = held.padded()
                request.probe.observe(layer, own, keys, values, held.present(seen), **options)
            outputs.append(held.read(own, mask, **options))
        return torch.cat(outputs, dim=2)
