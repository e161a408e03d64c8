"""A token more in each of several dialogues on a GPU: all their heads are read in one call a layer.

Heads of any lengths, in storage of their own: the kernels find them by address (`cache.kernels`).
"""

import functools
import importlib.util
from collections.abc import Sequence
from itertools import chain, count, repeat
from typing import Any

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.growing import ALIGNED, claim
from sonic_kv.cache.layers import SessionLayer

_stamps = count(1)
ABSENT = -(1 << 30)  # entries of a head that there is not, however many steps are counted


def fits(caches: Sequence[SessionCache]) -> bool:
    """Whether there are kernels, and something in every cache that they can read."""
    if not all(cache.layers[0].is_initialized and cache.layers[0].device.type == "cuda" for cache in caches):
        return False
    layers = caches[0].layers
    alike = len({len(layer.sizes) for layer in layers}) == 1
    return alike and not any(layer.entry_bytes % ALIGNED for layer in layers) and _triton()


@functools.cache
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class Together:
    """The next token of several dialogues. It is a reader: it stores entries, and reads them.

    Args:
        caches: of dialogues like those to come.
        dialogues: how many there may be.

    Attributes:
        key_at, value_at: where the entries of each head begin, in units of 16 bytes from `anchor`. (layers, N) int64
        sizes: how many entries it has; below 0: there is no such head. (layers, N) int32
    """

    def __init__(self, caches: Sequence[SessionCache], dialogues: int) -> None:
        first = caches[0].layers
        self._heads, entries = len(first[0].sizes), first[0].heads()[0][0]
        self._windows = [layer.window for layer in first]
        self._stamp, self._order, self._layers = 0, list[int](), list[SessionLayer]()
        self.anchor = torch.empty(ALIGNED, dtype=entries.dtype, device=entries.device)
        shape = (len(first), dialogues * self._heads)
        self.key_at, self.value_at = (
            torch.zeros(shape, dtype=torch.int64, device=entries.device) for _ in range(2)
        )
        self.sizes = torch.full(shape, ABSENT, dtype=torch.int32, device=entries.device)

    def take(self, caches: Sequence[SessionCache]) -> None:
        """Make room for one more entry in every head of these caches: the one that is read next."""
        for cache in caches:
            if cache.bits is not None:
                cache.unpack()
        self._layers = [layer for cache in caches for layer in cache.layers]
        before, self._stamp = self._stamp, next(_stamps)
        same = claim(self._layers, self._stamp, before)
        before_them, self._order = self._order, [cache.layers[0].addresses()[0][0] for cache in caches]
        if same and self._order == before_them:
            return  # `count` has done it
        held = [self._layers[number :: len(self._windows)] for number in range(len(self._windows))]
        anchor, places = self.anchor.data_ptr(), [[layer.addresses() for layer in layers] for layers in held]
        for table, part in ((self.key_at, 0), (self.value_at, 1)):
            rows = [[(at - anchor) // ALIGNED for of in layers for at in of[part]] for layers in places]
            table.copy_(self._table(0, rows))
        self.sizes.copy_(
            self._table(ABSENT, [[n for layer in layers for n in layer.sizes] for layers in held])
        )

    def settle(self) -> None:
        """Let the caches count what they were to take."""
        for layer in self._layers:
            layer.take()
        self._layers = []

    def _table(self, absent: int, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of numbers, filled up where there are fewer dialogues than there may be."""
        missing = self.sizes.shape[1] - len(rows[0])
        return torch.tensor([list(chain(row, repeat(absent, missing))) for row in rows])

    def count(self) -> None:
        """What was new is not any more."""
        self.sizes += 1

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        """As `Reader.read`. query (B, H, 1, D), key and value (B, G, 1, D) → (B, H, 1, D)"""
        from sonic_kv.cache import kernels

        heads, width = self.sizes.shape[1], query.shape[-1]
        where = (self.key_at[layer], self.value_at[layer], self.sizes[layer])
        new, told = (of.reshape(heads, width).contiguous() for of in (key, value))
        options: dict[str, Any] = {"scale": scale, "softcap": softcap, "window": self._windows[layer]}
        rows = query.reshape(heads, -1, width).contiguous()
        with torch.cuda.device_of(query):
            kernels.append(self.anchor, new, told, *where)
            return kernels.attend(self.anchor, rows, *where, **options).view(query.shape)
