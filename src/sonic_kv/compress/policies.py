"""Which entries matter: one small protocol, two sources.

`LearnedImportance` asks the adapter's scorer; `WindowImportance` watches recent queries and needs
no training. Both score entries of the memory and of the open segment on one scale.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.attention import Probe
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reread import Reread


class Importance(Protocol):
    """Scores entries when a segment is closed."""

    def reading(self, cache: SessionCache, token_ids: Sequence[int]) -> Reread | None:
        """What the model must read again before `scores`, if anything.

        Args:
            token_ids: of the open segment.
        """

    def scores(self, cache: SessionCache, read: Reread | None) -> list[Tensor]:
        """Importance of memory and open segment, recency apart.

        Args:
            read: what `reading` asked for, when it has been read.

        Returns:
            per layer (1, G, n + L) float32, comparable across layers and heads; -inf where `layer.scores` has it
        """

    def recency(self, layer: int, distance: Tensor) -> Tensor:
        """What the distance (tokens) to the end of the closed history adds. (…, G, S) → (…, G, S)"""


class LearnedImportance:
    """The adapter's scorer on unrotated keys and values; memory keeps the score it was stored with."""

    def __init__(self, model: SonicModel, adapter: Adapter) -> None:
        self._model, self._adapter = model, adapter

    def reading(self, cache: SessionCache, token_ids: Sequence[int]) -> None:
        return None

    @torch.no_grad()
    def scores(self, cache: SessionCache, read: Reread | None) -> list[Tensor]:
        end = cache.next_position
        back = -torch.arange(end - cache.open_length, end, device=self._model.device)
        result = []
        for number, layer in enumerate(cache.layers):
            keys, values = layer.newest(cache.open_length)
            fresh = self._adapter.scorer(number, self._model.rope.rotate(number, keys, back), values)
            result.append(torch.cat((layer.scores, fresh), dim=-1))
        return result

    @torch.no_grad()
    def recency(self, layer: int, distance: Tensor) -> Tensor:
        return self._adapter.scorer.recency(layer, distance)


class WindowImportance:
    """Log of the attention that the last `window` queries pay, as in SnapKV (arXiv:2404.14469).

    Memory accumulates it from one closing to the next, as in H2O (arXiv:2306.14048). Recency needs no
    term of its own: recent queries have it.
    """

    def __init__(self, model: SonicModel, window: int) -> None:
        self._model, self._window = model, window

    def reading(self, cache: SessionCache, token_ids: Sequence[int]) -> Reread:
        length = len(token_ids)
        offsets = torch.arange(max(length - self._window, 0), length, device=self._model.device)
        probe = Probe(rows=torch.arange(len(offsets), device=self._model.device)[None])
        return Reread(cache, token_ids, offsets, probe=probe)

    def scores(self, cache: SessionCache, read: Reread | None) -> list[Tensor]:
        assert read is not None
        assert read.probe is not None
        start, result = cache.lengths.prefix, []
        watchers = read.seen(whole_segment=False)[0, 0, :, start:].sum(0)  # queries that could see it
        for number, layer in enumerate(cache.layers):
            paid = read.probe.seen[number][..., start : layer.longest].sum((2, 3))  # (1, G, n + L)
            now = (paid / watchers[-paid.shape[-1] :]).clamp_min(1e-9).log()
            old = layer.scores
            memory = old.shape[-1]
            total = torch.logaddexp(now[..., :memory], old).where(old > -torch.inf, old)
            result.append(torch.cat((total, now[..., memory:]), dim=-1))
        return result

    def recency(self, layer: int, distance: Tensor) -> Tensor:
        return torch.zeros_like(distance, dtype=torch.float32)
