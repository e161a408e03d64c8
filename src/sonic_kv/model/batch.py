"""One decode step of many dialogues at once, each with its own cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sonic_kv.cache.cache import SessionCache
from sonic_kv.model.attention import no_mask, sonic_attention


class Rows:
    """The attention of one new token a dialogue.

    A dialogue's new entries go straight into its cache, and its query reads them there: nothing is copied or padded.
    """

    def __init__(self, caches: Sequence[SessionCache]) -> None:
        self._layers = list(zip(*(cache.layers for cache in caches), strict=True))

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor, **options: Any
    ) -> Tensor:
        return self.read(module.layer_idx, query, key, value, **options)

    def read(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """What the queries find. (B, H, 1, D), new entries (B, G, 1, D) → (B, H, 1, D)"""
        found = []
        for held, own, *new in zip(
            self._layers[layer], query.split(1), key.split(1), value.split(1), strict=True
        ):
            held.append(*new)
            found.append(held.read(own, None, **options))
        return torch.cat(found)


def forward(base: PreTrainedModel, token_ids: Tensor, positions: Tensor, attention: Any) -> Tensor:
    """Logits after one token a row, whose attention stores the new entries. Each (B, 1) → (B, V)"""
    output = base(
        input_ids=token_ids,
        position_ids=positions,
        attention_mask=no_mask(token_ids.device),
        use_cache=False,
        sonic=attention,
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def columns(
    caches: Sequence[SessionCache], token_ids: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and positions of a step. Each (B, 1)"""
    positions = [cache.next_position for cache in caches]
    return torch.tensor(token_ids, device=device)[:, None], torch.tensor(positions, device=device)[:, None]


@torch.no_grad()
def batch_step(base: PreTrainedModel, caches: Sequence[SessionCache], token_ids: Sequence[int]) -> Tensor:
    """Feed one token a dialogue; the logits after each. (B, V)

    If it fails, caches may be left with a part of the token's entries.
    """
    with sonic_attention(base):
        return forward(base, *columns(caches, token_ids, base.device), Rows(caches))
