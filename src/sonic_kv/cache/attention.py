"""Attention over entries that are held: pure functions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NOTED_ROWS = 128  # of tokens whose attention is noted, at a time


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Attention logits as Gemma bounds them; None: as they are."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Grouped-query attention under a mask.

    Args:
        query: (B, H, Q, D)
        key, value: (B, G, S, D)
        mask: True = seen, or what is added to the logits; every row sees something. None: all is seen.
            (B, 1 or G, Q, S)

    Returns:
        (B, H, Q, D)
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and mask is None:  # the query heads of a KV head read its entries as rows of one head
        rows = query.unflatten(1, (-1, groups)).flatten(2, 3)
        return masked_attention(rows, key, value, None, scale=scale, softcap=softcap).reshape(query.shape)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.repeat_interleave(groups, 1)
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    logits = capped(query @ key.transpose(-1, -2) * scale, softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    weights = logits.softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


def attend_heads(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    mask: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """`masked_attention` over KV heads that hold different numbers of entries, without padding or copies.

    Args:
        query: (1, H, Q, D)
        keys, values: of each KV head. (1, 1, n, D)
        mask: added to the logits of a head with most entries; others take its last columns. None: a single
            query that sees all. (1, 1, Q, ≥ n)

    Returns:
        (1, H, Q, D)
    """
    options: dict[str, Any] = {"scale": scale, "softcap": softcap}
    if mask is None:  # a KV head's query heads are rows of one head
        own = query.view(len(keys), 1, -1, query.shape[-1]).split(1)
        found = [
            masked_attention(q, k, v, None, **options) for q, k, v in zip(own, keys, values, strict=True)
        ]
        return torch.cat(found).view(query.shape)
    found = []
    for rows, *entries in zip(query.chunk(len(keys), 1), keys, values, strict=True):
        # entries are shown to every query head, not repeated
        key, value = (held.expand(-1, rows.shape[1], -1, -1) for held in entries)
        allowed = mask[..., mask.shape[-1] - key.shape[2] :]
        found.append(masked_attention(rows, key, value, allowed, **options))
    return torch.cat(found, dim=1)


def outside(own: Tensor, columns: int, window: int) -> Tensor:
    """Which columns rows do not see in a layer with a sliding window.

    Args:
        own: the column of each row. (N,)

    Returns:
        (N, columns) bool
    """
    return torch.arange(columns, device=own.device) <= own[:, None] - window


def attend_noting(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    new_keys: Tensor,
    new_values: Tensor,
    *,
    scale: float,
    softcap: float | None,
    window: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Attention of new tokens over held entries and one another, and the most that an entry gets of any of them.

    Args:
        query: (1, H, T, D)
        keys, values: held, of each KV head. (n, D)
        new_keys, new_values: of the tokens. (1, G, T, D)
        window: how many of the newest entries a token sees, itself included; None: all.

    Returns:
        (1, H, T, D), and of each KV head the largest weight in any of its query heads (n,) float32
    """
    outputs, largest = [], []
    heads = zip(query[0].chunk(len(keys)), keys, values, new_keys[0], new_values[0], strict=True)
    for rows, held, read, *new in heads:  # rows (R, T, D)
        key, value, size = torch.cat((held, new[0])), torch.cat((read, new[1])), len(held)
        most, parts = held.new_zeros(size, dtype=torch.float32), []
        for start in range(0, rows.shape[1], NOTED_ROWS):
            block = rows[:, start : start + NOTED_ROWS]
            count = block.shape[1]
            seen = size + start + count
            logits = capped((block @ key[:seen].T).float() * scale, softcap)
            later = torch.ones(count, count, dtype=torch.bool, device=logits.device).triu(1)
            logits[..., size + start :].masked_fill_(later, -torch.inf)
            if window is not None:
                own = torch.arange(size + start, seen, device=logits.device)
                logits.masked_fill_(outside(own, seen, window), -torch.inf)
            weights = logits.softmax(-1)
            most = torch.maximum(most, weights[..., :size].amax((0, 1)))
            parts.append(weights.to(value.dtype) @ value[:seen])
        outputs.append(torch.cat(parts, 1))
        largest.append(most)
    return torch.cat(outputs)[None], largest
