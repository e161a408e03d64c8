"""One decode step of many dialogues at once, each with its own cache."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.together import Together, fits
from sonic_kv.model.forward import forward
from sonic_kv.model.graph import GraphStep
from sonic_kv.model.reader import Held, Reader


@torch.no_grad()
def batch_step(
    twin: PreTrainedModel,
    caches: Sequence[SessionCache],
    token_ids: Sequence[int],
    graph: GraphStep | None = None,
) -> Tensor:
    """Feed one token a dialogue; the logits after each. (B, V)

    If it fails, caches may be left with a part of the token's entries.

    Args:
        graph: of the step, if it was recorded.
    """
    if graph is not None and fits(caches):
        return graph(caches, token_ids)
    rows, positions = columns(caches, token_ids, twin.device)
    return forward(twin, rows, positions, held(caches, 1, twin.dtype, twin.device))[:, -1]


def held(caches: Sequence[SessionCache], count: int, dtype: torch.dtype, device: torch.device) -> Reader:
    """The reader of `count` tokens that go on in each cache."""
    if count > 1 or device.type != "cuda" or not fits(caches):
        return Held(caches, count, dtype, device)
    together = Together(caches, len(caches))
    together.take(caches)
    together.settle()
    return together


def columns(
    caches: Sequence[SessionCache], token_ids: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and positions of a step. Each (B, 1)"""
    positions = [cache.next_position for cache in caches]
    return torch.tensor(token_ids, device=device)[:, None], torch.tensor(positions, device=device)[:, None]
