"""Refitting values: what is kept of a head answers for what was dropped."""

from dataclasses import replace

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.layers import Memory
from sonic_kv.model.reread import Asked
from sonic_kv.model.rotary import Rope

RIDGE = 1.0  # how strongly values stay what they were, in units of the mean weight that entries get


def answering(
    cache: SessionCache, number: int, memory: Memory, asked: Asked, rope: Rope, nearer: int = 0
) -> Memory:
    """What is kept of a layer, with values that give some queries, as nearly as they can, what all entries give them.

    Values of the open segment change; those of older ones were refitted to other queries, when these were closed.

    Args:
        cache: as it still is, the segment open.
        number: of the layer.
        memory: what is kept behind the prefix.
        asked: the queries.
        nearer: by how many positions later queries will be nearer to the prefix than these (compact positions).
    """
    prefix, (keys, values) = cache.lengths.prefix, cache.layers[number].heads()
    wanted = [w @ of.float() for w, of in zip(asked.weights(keys), values, strict=True)]
    later = replace(asked, query=rope.rotate(number, asked.query, torch.tensor(-nearer))) if nearer else asked
    kept = [torch.cat((old[:prefix], new)) for old, new in zip(keys, memory.keys, strict=True)]
    start = cache.logical_length - cache.open_length
    fresh = [int((at >= start).sum()) for at in memory.positions]
    found = []
    for weights, target, old, own, count in zip(
        later.weights(kept), wanted, values, memory.values, fresh, strict=True
    ):
        missing = target - weights @ torch.cat((old[:prefix], own)).float()
        older = len(own) - count
        new = own[older:].float() + change(weights[:, prefix + older :], missing)
        found.append(torch.cat((own[:older], new.to(own.dtype))))
    return replace(memory, values=found)


def change(weights: Tensor, missing: Tensor) -> Tensor:
    """How values must change so that queries get what they miss: least squares, with a ridge that holds values where
    they are. The second step of Attention Matching (arXiv:2602.16284), without biases.

    Args:
        weights: that the queries give the entries. (N, n)
        missing: what they lack. (N, D)

    Returns:
        (n, D)
    """
    queries, entries = weights.shape
    if not entries:
        return missing.new_zeros(0, missing.shape[1])
    few = entries <= queries  # the smaller of two systems with the same solution
    gram = weights.T @ weights if few else weights @ weights.T
    gram.diagonal().add_(RIDGE * gram.diagonal().sum() / entries + torch.finfo(gram.dtype).tiny)
    factor = torch.linalg.cholesky(gram)
    if few:
        return torch.cholesky_solve(weights.T @ missing, factor)
    return weights.T @ torch.cholesky_solve(missing, factor)
