"""Which entries are kept: from scores to indices, for a session and for training alike."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sonic_kv.budget import allocate, select_by_segment, select_global


class Scored(Protocol):
    """Entries of one layer: transcript positions and importance, both (1, G, N)."""

    @property
    def positions(self) -> Tensor: ...

    @property
    def scores(self) -> Tensor: ...


class Selection:
    """Shares a number of entries among segments and lets each layer and KV head choose its own.

    Args:
        recency: (layer, distances (G, N)) → what the distance adds to the score. (G, N)
        by_segment: share the entries among the segments first, alike for all heads; else each head
            chooses over the whole history.
    """

    def __init__(self, recency: Callable[[int, Tensor], Tensor], by_segment: bool) -> None:
        self._recency, self._by_segment = recency, by_segment

    def ranked(self, layer: int, entry: Scored, starts: Sequence[int], end: int) -> tuple[Tensor, Tensor]:
        """Scores with recency, and the segment number (from 0) of every entry. Both (G, N)

        Args:
            starts: transcript positions at which the closed segments start.
            end: transcript position at which the last of them ends.
        """
        positions = entry.positions[0].long()
        scores = entry.scores[0] + self._recency(layer, end - positions)
        edges = torch.tensor(list(starts), device=positions.device)
        return scores, torch.bucketize(positions, edges, right=True) - 1

    def counts(self, entries: Sequence[Scored], starts: Sequence[int], end: int, total: int) -> list[int]:
        """Entries of each segment if they are shared among segments; else empty.

        A segment's weight is the attention it can expect: the softmax of the scores, summed over
        its entries (so: length × mean importance × recency), averaged over layers and heads.
        """
        if not self._by_segment:
            return []
        weights, held = torch.zeros(len(starts)), torch.zeros(len(starts))
        for layer, entry in enumerate(entries):
            scores, segments = self.ranked(layer, entry, starts, end)
            owner = segments[0].cpu()
            weights.index_add_(0, owner, scores.softmax(-1).mean(0).float().cpu())
            held = torch.bincount(owner, minlength=len(starts))
        return allocate(weights.tolist(), [int(n) for n in held], total)

    def keep(
        self, entries: Sequence[Scored], starts: Sequence[int], end: int, total: int, counts: Sequence[int]
    ) -> list[Tensor]:
        """Kept entries of each layer, ascending, per head. Each (G, total)"""
        result = []
        for layer, entry in enumerate(entries):
            scores, segments = self.ranked(layer, entry, starts, end)
            if counts:
                result.append(select_by_segment(scores, segments, counts))
            else:
                result.append(select_global(scores, segments, total))
        return result


def candidates(entries: Sequence[Scored], kept: Sequence[Tensor], old: int, share: float) -> Tensor:
    """Tokens of the newest segment worth encoding: those that most layers and heads would keep.

    Args:
        entries: `old` memory entries, then the newest segment's.
        kept: what each layer and head would keep of them. Each (G, n)
        share: candidates per entry that a head keeps of the segment, on average.

    Returns:
        offsets into the segment, ascending. (N,)
    """
    length = entries[0].positions.shape[-1] - old
    votes, fresh = torch.zeros(length, device=kept[0].device), 0.0
    for entry, index in zip(entries, kept, strict=True):
        votes += torch.bincount(index[index >= old] - old, minlength=length)
        votes += entry.scores[0, :, old:].sigmoid().mean(0) / len(entries)  # decides ties
        fresh += float((index >= old).sum(-1).float().mean()) / len(entries)
    return votes.topk(min(length, math.ceil(share * fresh))).indices.sort().values


def in_elastic_order(scores: Tensor, old: int) -> Tensor:
    """Scores for learned Nexus tokens: the newest segment's last one is dropped last, in every head alike.

    Args:
        scores: of `old` memory entries, then of the newest segment. (1, G, N)
    """
    return torch.cat((scores[..., :old], scores[..., old:].sort().values), dim=-1)
