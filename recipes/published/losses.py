"""The losses of the published form, one function each with its equation, and their weights.

Letters beside those of docs/notation.md: p_T and p_S are the next-token distributions of the full-context
base (teacher) and of the compressed run (student), a_T and a_S their attention, o_T and o_S its outputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonic_kv.options import Options, option, share
from sonic_kv.training.losses import by_rows, kl

FLOOR = 1e-9  # below it a probability counts as 0


@dataclass(frozen=True)
class LossConfig(Options):
    """What is trained towards: each loss by its weight (0: off, and not computed)."""

    importance_weight: float = option(1.0, "scorer: cross-entropy to what later turns attend to", least=0.0)
    importance_queries: int = option(
        256, "later queries sampled per dialogue as the scorer's target", least=1
    )
    importance_norm: float = option(
        4.0,
        "how its later queries add up: 1 is their mean, inf their maximum, between them a power mean",
        least=1.0,
        most=math.inf,
    )
    importance_need: float = option(
        1.0,
        "queries count by this power of how much their next token needs the history; 0: all alike",
        least=0.0,
    )
    distillation_weight: float = option(1.0, "KL to the full-context base", least=0.0)
    forward_kl: float = share(0.7, "share of forward KL in it; the rest is reverse KL")
    attention_weight: float = option(0.0, "KL of the attention mass per segment to the base's", least=0.0)
    output_weight: float = option(
        0.0, "squared error of attention outputs, relative to the base's", least=0.0
    )
    ignored_weight: float = option(
        1.0, "penalty where a segment's entries get less than ignored_share", least=0.0
    )
    ignored_share: float = share(0.5, "of the attention mass that the segment has in the base")
    coverage_weight: float = option(
        0.0, "KL of what Nexus tokens look at to what later turns look at", least=0.0
    )
    reconstruction_weight: float = option(
        0.5, "cross-entropy of a segment repeated from its kept entries alone", least=0.0
    )
    observed_queries: int = option(64, "later rows observed per dialogue for the attention losses", least=1)
    observed_layers: int = option(2, "layers observed for them, drawn at every step", least=1)


@torch.no_grad()
def need(full: Tensor, own: Tensor) -> Tensor:
    """How much a token's prediction needs the history: KL(p_full ‖ p_own segment), in nats.

    It is the expected log p(x | full) − log p(x | own segment) when the base itself writes on.

    Args:
        full, own: logits with the whole history, and with prefix and own segment alone. (T, V)

    Returns:
        (T,) of the token that each row predicts
    """
    return by_rows(lambda full, own: kl(full.float().log_softmax(-1), own.float().log_softmax(-1)), full, own)


def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Mean of −log p_S(x_t).

    Args:
        student: logits. (T, V)
        targets: the tokens that they predict. (T,)
    """

    def surprise(student: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(student.float(), targets, reduction="none")

    return by_rows(surprise, student, targets).mean()


def query_weights(need: Tensor, power: float) -> Tensor:
    """How much queries count by the need of the tokens they predict: (need + 0.5 nats) ** power. (Q,)"""
    weights: Tensor = (need + 0.5) ** power
    return weights


def attention_targets(
    paid: Tensor,
    queries: Tensor,
    boundaries: Sequence[int],
    start: int,
    norm: float,
    weights: Tensor | None = None,
) -> list[Tensor]:
    """What queries after each boundary attend to in the history before it, as a distribution.

    Of token s it is ∝ (Σ_t (w_t · a_T(t, s))^n)^(1/n) over later queries t of all query heads. n = 1 is
    their mean, which forgets what is asked for once; n = ∞ the largest.

    Args:
        paid: attention of sampled queries in the full-context base. (G, R, Q, S)
        queries: their transcript positions, ascending. (Q,)
        boundaries: where the history ends; a query follows each.
        start: the history starts here (the prefix is always kept).
        norm: n, from 1 to infinity.
        weights: w, of the queries. (Q,)

    Returns:
        for each boundary (G, boundary - start), rows sum to 1
    """
    if weights is not None:
        paid = paid * (weights / weights.max())[:, None]
    backwards = paid.flip(2)  # what follows a boundary, summed up from the end
    if norm == math.inf:
        following = backwards.amax(1).cummax(1).values
    else:
        following = backwards.pow(norm).sum(1).cumsum(1).pow(1.0 / norm)
    found = []
    for boundary in boundaries:
        mass = following[:, int((queries >= boundary).sum()) - 1, start:boundary]  # (G, S')
        found.append(mass / mass.sum(-1, keepdim=True).clamp_min(FLOOR))
    return found


def importance(scores: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Cross-entropy between the softmax of the scores and what later turns look at, each head by itself.

    This is attention-guided distillation of the selection: the scorer learns, from one segment
    alone, where the attention of turns that are still to come will go.

    Args:
        scores: per layer, recency included. (G, S)
        targets: per layer. (G, S)
    """
    losses = [
        -(target * score.log_softmax(-1)).sum(-1).mean()
        for score, target in zip(scores, targets, strict=True)
    ]
    return torch.stack(losses).mean()


def segment_mass(paid: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Attention per segment: a(t, s) = Σ over the columns of s. (…, Q, S) → (…, Q, segments)

    Args:
        segment: number of every column, below `segments`. (S,)
    """
    member = torch.nn.functional.one_hot(segment, segments).to(paid.dtype)
    return paid @ member


def attention_mass(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention-guided distillation: mean over rows of KL(a_T(t, ·) ‖ a_S(t, ·)) over segments.

    Args:
        student, teacher: attention of a row per segment, prefix and own one included. (…, Q, segments)
    """
    return kl(teacher.clamp_min(FLOOR).log(), student.clamp_min(FLOOR).log()).mean()


def attention_output(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of ‖o_T − o_S‖² / ‖o_T‖². Both (…, Q, D)"""
    return ((teacher - student).pow(2).sum(-1) / teacher.pow(2).sum(-1).clamp_min(FLOOR)).mean()


def ignored(student: Tensor, teacher: Tensor, share: float) -> Tensor:
    """A penalty where the entries of a segment are ignored: max(0, ρ · a_T − a_S)², summed over segments.

    Args:
        student, teacher: attention of a row per closed segment. (…, Q, segments)
        share: ρ, what a segment's entries must have at least of its mass in the base.
    """
    return (share * teacher - student).clamp_min(0.0).pow(2).sum(-1).mean()


def coverage(looked: Tensor, target: Tensor) -> Tensor:
    """What later turns look at in a segment must be looked at by the Nexus tokens that replace it:
    KL(target ‖ mean over the Nexus tokens of their attention inside the segment).

    Args:
        looked: attention of Nexus tokens to the raw tokens of their own segment. (G, R, N, S)
        target: of `attention_targets` over the same tokens. (G, S)
    """
    mean = looked.mean((1, 2))  # (G, S)
    mean = mean / mean.sum(-1, keepdim=True).clamp_min(FLOOR)
    return kl(target.clamp_min(FLOOR).log(), mean.clamp_min(FLOOR).log()).mean()
