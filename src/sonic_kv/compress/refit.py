"""Refitting values: what is kept of a head answers for what was dropped."""

import torch
from torch import Tensor

RIDGE = 1.0  # how strongly values stay what they were, in units of the mean weight that entries get


def refit(logits: Tensor, values: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """Values with which the kept entries of a KV head give, as nearly as they can, what all entries gave.

    Least squares over some queries, with a ridge that holds values where they were: the second step of Attention
    Matching (arXiv:2602.16284), without biases.

    Args:
        logits: of queries over all entries, scaled. (N, S)
        values: of all entries. (S, D)
        kept: which of them stay, the prefix among them. (S,) bool
        prefix: so many first values do not change.

    Returns:
        values, of which those of kept entries behind the prefix are new. (S, D)
    """
    before = values.float()
    left = logits.masked_fill(~kept, -torch.inf).softmax(-1)
    missing = (logits.softmax(-1) - left) @ before  # (N, D)
    free = kept.nonzero()[prefix:, 0]
    if not len(free):
        return values
    weights = left[:, free]  # (N, n); there are fewer queries than entries, so the smaller system is solved
    gram = weights @ weights.T
    gram.diagonal().add_(RIDGE * gram.diagonal().sum() / len(free))
    change = weights.T @ torch.linalg.solve(gram, missing)
    return before.index_add(0, free, change).to(values.dtype)
