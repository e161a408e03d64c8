"""One function per loss, with its equation. What each is worth stands in docs/log.md.

Letters beside those of docs/notation.md: p_T and p_S are the next-token distributions of the full-context
base (teacher) and of the compressed run (student), a_T and a_S their attention, o_T and o_S its outputs.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FLOOR = 1e-9  # below it a probability counts as 0
CHUNK = 1024  # rows that have full-vocabulary distributions at a time


def by_rows(loss: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """A loss of each row, a chunk of rows at a time: in float32 all of a long dialogue's would fill a GPU.

    Args:
        loss: (Q, V), … → (Q,); the backward pass runs it again if there are several chunks.
        rows: its arguments. (T, V), or (T,)

    Returns:
        (T,)
    """
    if len(rows[0]) <= CHUNK:
        return loss(*rows)
    chunks = zip(*(part.split(CHUNK) for part in rows), strict=True)
    return torch.cat([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks])


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of two log distributions, over the last dimension. (…, V) → (…)"""
    return (p.exp() * (p - q)).sum(-1)


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


def distillation(
    student: Tensor, teacher: Tensor, forward_share: float, weights: Tensor | None = None
) -> Tensor:
    """KL between the full-context base and the compressed run, (weighted) mean over tokens.

    λ · KL(p_T ‖ p_S) + (1 − λ) · KL(p_S ‖ p_T): forward KL covers what the teacher would say, reverse
    KL keeps the student from saying what it would not (KV-Distill, arXiv:2503.10337).

    Args:
        student, teacher: logits. (T, V)
        forward_share: λ in [0, 1].
        weights: of the tokens; they are normalised. (T,)
    """

    def mixture(student: Tensor, teacher: Tensor) -> Tensor:
        log_p, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
        return forward_share * kl(log_t, log_p) + (1.0 - forward_share) * kl(log_p, log_t)

    mixed = by_rows(mixture, student, teacher)
    return mixed.mean() if weights is None else (mixed * weights).sum() / weights.sum()


def cross_entropy(student: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy: Σ w_t · −log p_S(x_t) / Σ w_t, and 0 if all weights are.

    Args:
        student: logits. (T, V)
        targets: the tokens that they predict. (T,)
        weights: ∝ exp(min(need, γ)) on assistant tokens, else 0. (T,)
    """

    def surprise(student: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(student.float(), targets, reduction="none")

    loss = by_rows(surprise, student, targets)
    return (loss * weights).sum() / weights.sum().clamp_min(FLOOR)


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
    """Cross-entropy between the softmax of the scores and what later turns look at.

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
