"""Which of the kept entries are re-encoded, and in which order learned ones are dropped: pure functions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def candidates(kept: Sequence[Tensor], scores: Sequence[Tensor], share: float) -> Tensor:
    """Tokens of the newest segment worth encoding: those that most layers and heads would keep.

    Args:
        kept: what each layer and head would keep of the segment. Each (G, L) bool
        scores: its importance. Each (G, L)
        share: candidates per entry that a head keeps of the segment, on average.

    Returns:
        offsets into the segment, ascending. (N,)
    """
    votes = torch.stack([mask.sum(0) for mask in kept]).sum(0)
    ties = torch.stack([s.sigmoid().mean(0) for s in scores]).mean(0)
    mean = float(torch.stack([mask.sum(-1).float().mean() for mask in kept]).mean())
    return (votes + ties).topk(min(len(ties), math.ceil(share * mean))).indices.sort().values


def in_elastic_order(scores: Tensor, old: int) -> Tensor:
    """Scores for learned Nexus tokens: the newest segment's last one is dropped last, in every head alike.

    Args:
        scores: of `old` memory entries, then of the newest segment. (G, N)
    """
    return torch.cat((scores[..., :old], scores[..., old:].sort().values), dim=-1)
