"""One decode step of many dialogues at once, each with its own cache.

A row's new entries go straight into its cache, and its attention reads them there: nothing is copied or padded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from sonic_kv.attention import sonic_attention
from sonic_kv.cache import SessionCache
from sonic_kv.layers import SessionLayer


class BatchLayer(DynamicLayer):
    """One layer of all rows."""

    def __init__(self, rows: Sequence[SessionLayer]) -> None:
        super().__init__()
        self._rows = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Each row takes its own. (B, G, 1, D)"""
        for row, key, value in zip(self._rows, key_states.split(1), value_states.split(1), strict=True):
            row.update(key, value)
        return key_states, value_states

    def read(self, query: Tensor, **options: Any) -> Tensor:
        """What each row's query finds in its cache. (B, H, 1, D)"""
        found = [row.read(q, None, **options) for row, q in zip(self._rows, query.split(1), strict=True)]
        return torch.cat(found)


@torch.no_grad()
def batch_step(base: PreTrainedModel, caches: Sequence[SessionCache], token_ids: Sequence[int]) -> Tensor:
    """Feed one token a dialogue; the logits after each. (B, V)

    If it fails, caches may be left with a part of the token's entries.
    """
    device = base.device
    positions = [cache.next_position for cache in caches]
    layers = [BatchLayer(rows) for rows in zip(*(cache.layers for cache in caches), strict=True)]
    with sonic_attention(base):
        output = base(
            input_ids=torch.tensor(token_ids, device=device)[:, None],
            position_ids=torch.tensor(positions, device=device)[:, None],
            attention_mask=torch.ones(
                1, 1, 1, 1, dtype=torch.bool, device=device
            ),  # a row sees all of its own
            past_key_values=Cache(layers=layers),
            use_cache=True,
            sonic=_Apart(layers),
        )
    logits: Tensor = output.logits[:, -1]
    return logits


class _Apart:
    """The attention of one new token a row, over the row's own cache."""

    def __init__(self, layers: Sequence[BatchLayer]) -> None:
        self._layers = layers

    def attend(
        self, module: Any, query: Tensor, _key: Tensor, _value: Tensor, _mask: Tensor, **options: Any
    ) -> Tensor:
        found: Tensor = self._layers[module.layer_idx].read(query, **options)
        return found
