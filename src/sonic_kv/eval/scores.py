"""Scores of published methods for one KV head's entries, short and from the papers; the higher the sooner kept.

Each is held against kvpress 0.5.5 by a test. Entries stand in the order of the transcript; the prefix is not among
them. n: entries, Q: queries, R: query heads of the KV head, D: head width.
"""

import torch
from torch import Tensor, nn

LAG = 128  # LagKV's own partition, made for prompts of thousands of tokens
FUTURE = 512  # positions ahead of which ExpectedAttention takes the mean


def keydiff(keys: Tensor) -> Tensor:
    """Keys unlike the mean direction matter (arXiv:2504.15364). (n, D) → (n,)"""
    anchor = nn.functional.normalize(keys, dim=-1).mean(-2, keepdim=True)
    return -nn.functional.cosine_similarity(keys, anchor, dim=-1)


def lagkv(keys: Tensor, values: Tensor, lag: int, *, ranked: bool = True) -> Tensor:
    """How much a token varies on the scale of the partition that follows it (arXiv:2504.04704).

    The last whole partition and what follows it have none after them and stay (1).

    Args:
        lag: tokens of a partition.
        ranked: by rank within the partition, as published; otherwise by a softmax over it, which heads can share.

    Returns:
        (n,), at most 1
    """
    count = len(keys) // lag
    found = torch.ones(len(keys), dtype=keys.dtype, device=keys.device)
    if count < 2:
        return torch.linspace(0, 1, len(keys), dtype=keys.dtype, device=keys.device)
    scores = (_spread(keys[: count * lag], lag) + _spread(values[: count * lag], lag)) / 2
    if ranked:
        scores = scores.argsort(-1).argsort(-1).to(keys.dtype) / lag
    found[: (count - 1) * lag] = scores.flatten()
    return found


def _spread(vectors: Tensor, lag: int) -> Tensor:
    """A softmax per partition but the last. (count * lag, D) → (count - 1, lag)"""
    parts = vectors.unflatten(0, (-1, lag))
    low, high = parts[1:].amin(1, keepdim=True), parts[1:].amax(1, keepdim=True)
    found: Tensor = ((parts[:-1] - low) / (high - low)).std(-1).softmax(-1)
    return found


def cur(keys: Tensor, values: Tensor, window: int = 16) -> Tensor:
    """Leverage of key and value among their neighbours (CurDKV, arXiv:2509.15038). (n, D) each → (n,)"""
    scores = _leverage(keys, window) * _leverage(values, window)
    return scores / scores.sum()


def _leverage(vectors: Tensor, window: int) -> Tensor:
    squares = vectors.square().sum(-1)
    parts = nn.functional.pad(squares, (0, -len(squares) % window)).unflatten(0, (-1, window))
    found: Tensor = (parts / parts.sum(-1, keepdim=True)).flatten()[: len(squares)]
    return found


def snapkv(attention: Tensor, kernel: int = 5) -> Tensor:
    """Mean attention of the newest queries, smoothed; their own tokens stay (arXiv:2404.14469).

    Args:
        attention: of the newest Q tokens. (R, Q, n)
    """
    size = attention.shape[-1] - attention.shape[1]
    mean = attention[..., :size].mean(1)  # (R, n - Q)
    smooth = nn.functional.avg_pool1d(mean, kernel, stride=1, padding=kernel // 2).mean(0)
    return nn.functional.pad(smooth, (0, attention.shape[1]), value=torch.inf)


def tova(attention: Tensor) -> Tensor:
    """Attention of the newest query, mean over all heads of the layer; its own token stays (arXiv:2401.06104).

    Args:
        attention: of the newest token, of all query heads. (H, n)
    """
    found = attention.mean(0)
    found[-1] = torch.inf
    return found


def expected_attention(keys: Tensor, values: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Attention that queries of a normal distribution would pay, times the value's norm (arXiv:2510.00636).

    Args:
        mean, covariance: of the queries where they will stand. (R, D), (R, D, D)
    """
    width = keys.shape[-1]
    logits = keys @ mean.T / width**0.5 + torch.einsum("nd,rde,ne->nr", keys, covariance, keys) / width / 2
    found: Tensor = logits.softmax(0).mean(-1) * values.norm(dim=-1)
    return found


def critical(scores: Tensor, values: Tensor, output: Tensor, sure: int) -> Tensor:
    """CriticalKV's weighting (arXiv:2502.03805): score times |v W_O|, mean over query heads.

    Args:
        scores: (n,)
        values: (n, D)
        output: rows of the output projection that the query heads feed. (R, D, C)
        sure: how many stay by their score alone: half of what a head keeps, as published.
    """
    weighted = (scores + 1e-4) * (values @ output).abs().sum(-1).mean(0)
    return weighted.index_fill(0, scores.topk(min(sure, len(scores))).indices, torch.inf)
