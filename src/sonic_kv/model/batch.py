"""One decode step of many dialogues at once, each with its own cache."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sonic_kv.cache.cache import SessionCache
from sonic_kv.model.forward import forward
from sonic_kv.model.reader import Held


@torch.no_grad()
def batch_step(twin: PreTrainedModel, caches: Sequence[SessionCache], token_ids: Sequence[int]) -> Tensor:
    """Feed one token a dialogue; the logits after each. (B, V)

    If it fails, caches may be left with a part of the token's entries.
    """
    rows, positions = columns(caches, token_ids, twin.device)
    return forward(twin, rows, positions, Held(caches, 1, twin.dtype, twin.device))[:, -1]


def columns(
    caches: Sequence[SessionCache], token_ids: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and positions of a step. Each (B, 1)"""
    positions = [cache.next_position for cache in caches]
    return torch.tensor(token_ids, device=device)[:, None], torch.tensor(positions, device=device)[:, None]
