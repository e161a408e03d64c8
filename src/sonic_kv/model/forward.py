"""The one place where a model is run."""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from sonic_kv.model.reader import Reader

# All but cuDNN, which gets ready anew for every shape, in tens of milliseconds: readers meet new ones all the time.
ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def forward(
    module: PreTrainedModel,
    rows: Tensor,
    positions: Tensor,
    reader: Reader | None = None,
    *,
    cache: Cache | None = None,
    logits: int | Tensor | None = 0,
) -> Tensor:
    """Run a base model, or a twin of it under a reader.

    Args:
        module: a twin, if there is a reader; else the base.
        rows: token ids (B, T), or embeddings (B, T, C)
        positions: RoPE positions. (B, T)
        reader: what the rows see, and how they attend; None: the module's own attention.
        cache: takes the rows' keys and values in. With a reader that stores them itself: None.
        logits: the rows after which they are wanted: so many last ones (0: all), or these (N,). None: of none.

    Returns:
        logits (B, T or so many, V); if none are wanted, the last hidden states (B, T, C)
    """
    call: dict[str, Any] = {
        "inputs_embeds" if rows.is_floating_point() else "input_ids": rows,
        "position_ids": positions,
    }
    if reader is not None:
        # who sees what is the reader's; without a 4D mask transformers would make one
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.device)
        call |= {"reader": reader, "attention_mask": mask}
    call |= {"use_cache": False} if cache is None else with_cache(module, cache)
    found: Tensor
    with sdpa_kernel(ANY_SHAPE) if reader is not None and rows.is_cuda else nullcontext():
        if logits is None:
            found = module.get_decoder()(**call).last_hidden_state
        else:
            found = module(**call, logits_to_keep=logits).logits
    return found


def head(module: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What a model makes of its last hidden states: logits, with all caps and scales. (B, n, C) → (B, n, V)"""
    only = copy(module)  # its decoder is exchanged for one that gives back its input; the model keeps its own
    only._modules = {**module._modules, module.base_model_prefix: _Given()}

    def logits(hidden: Tensor) -> Tensor:
        found: Tensor = only(inputs_embeds=hidden, use_cache=False).logits
        return found

    return logits


class _Given(nn.Module):
    """In a decoder's place: the last hidden states are what it is given."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


def with_cache(module: nn.Module, cache: Cache) -> dict[str, Any]:
    """The arguments by which a model reads and fills a cache."""
    return {cache_name(module): cache, "use_cache": True}


def cache_name(module: nn.Module) -> str:
    """What a model calls the argument that takes its cache; transformers 5.24 renamed it."""
    return "cache" if _takes_cache(type(module).forward) else "past_key_values"


@functools.cache
def _takes_cache(forward: Callable[..., Any]) -> bool:
    return "cache" in inspect.signature(forward).parameters
