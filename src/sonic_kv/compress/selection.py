"""Which entries are kept: from scores to masks, for a session and for training alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonic_kv.compress.budget import allocate, select_by_segment, select_global, select_pooled
from sonic_kv.compress.options import Allocation


@dataclass(frozen=True)
class Entries:
    """Entries of one layer, of which each is kept or not."""

    positions: Tensor  # in the transcript. (1, G, N)
    scores: Tensor  # importance; -inf: no entry. (1, G, N)


class Selection:
    """Shares a number of entries among layers, KV heads and segments.

    Args:
        recency: (layer, distances (G, N)) → what the distance adds to the score. (G, N)
        allocation: all layers and heads share one total (pooled); each head has as many and chooses over
            the whole history (global), or over each segment's share of it, alike for all heads (segment).
    """

    def __init__(self, recency: Callable[[int, Tensor], Tensor], allocation: Allocation) -> None:
        self._recency, self.allocation = recency, allocation

    def ranked(self, layer: int, entry: Entries, starts: Sequence[int], end: int) -> tuple[Tensor, Tensor]:
        """Scores with recency, and the segment number (from 0) of every entry. Both (G, N)

        Args:
            starts: transcript positions at which the closed segments start.
            end: transcript position at which the last of them ends.
        """
        positions = entry.positions[0].long().contiguous()
        scores = entry.scores[0] + self._recency(layer, end - positions)
        edges = torch.tensor(list(starts), device=positions.device)
        return scores, (torch.bucketize(positions, edges, right=True) - 1).clamp_min(0)

    def counts(self, entries: Sequence[Entries], starts: Sequence[int], end: int, total: int) -> list[int]:
        """Entries of each segment if they are shared among segments; else empty.

        A segment's weight is the attention it can expect: the softmax of the scores, summed over
        its entries (so: length × mean importance × recency), averaged over layers and heads.
        """
        if self.allocation != "segment":
            return []
        weights, held = torch.zeros(len(starts)), torch.zeros(len(starts))
        for layer, entry in enumerate(entries):
            scores, segments = self.ranked(layer, entry, starts, end)
            owner, present = segments[0].cpu(), (entry.scores[0, 0] > -torch.inf).cpu()
            weights.index_add_(0, owner, scores.softmax(-1).mean(0).float().cpu())
            held = torch.bincount(owner[present], minlength=len(starts))
        return allocate(weights.tolist(), [int(n) for n in held], total)

    def keep(
        self, entries: Sequence[Entries], starts: Sequence[int], end: int, total: int, counts: Sequence[int]
    ) -> list[Tensor]:
        """Which entries of each layer are kept, `total` a head in the mean. Each (G, N) bool

        Args:
            counts: what `counts` returned, or another share of each segment.
        """
        ranked = [self.ranked(layer, entry, starts, end) for layer, entry in enumerate(entries)]
        if counts:
            return [select_by_segment(scores, segments, counts) for scores, segments in ranked]
        if self.allocation == "pooled":
            return select_pooled([scores for scores, _ in ranked], total)
        return [select_global(scores, segments, total) for scores, segments in ranked]


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
        scores: of `old` memory entries, then of the newest segment. (1, G, N)
    """
    return torch.cat((scores[..., :old], scores[..., old:].sort().values), dim=-1)
