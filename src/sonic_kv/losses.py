"""One function per loss."""

from collections.abc import Sequence

import torch
from torch import Tensor


def distillation(student: Tensor, teacher: Tensor, forward_share: float) -> Tensor:
    """KL between the full-context base and the compressed run, mean over tokens.

    λ · KL(teacher ‖ student) + (1 − λ) · KL(student ‖ teacher): forward KL covers what the teacher
    would say, reverse KL keeps the student from saying what it would not (KV-Distill, arXiv:2503.10337).

    Args:
        student, teacher: logits. (T, V)
        forward_share: λ in [0, 1].
    """
    log_p = student.float().log_softmax(-1)
    log_t = teacher.float().log_softmax(-1)
    forward = (log_t.exp() * (log_t - log_p)).sum(-1)
    reverse = (log_p.exp() * (log_p - log_t)).sum(-1)
    return (forward_share * forward + (1.0 - forward_share) * reverse).mean()


def attention_target(
    paid: Tensor, queries: Tensor, boundary: int, start: int, reduce: str, power: float
) -> Tensor:
    """What queries after `boundary` attend to in the history, as a distribution.

    Args:
        paid: attention of sampled queries in the full-context base. (G, R, Q, S)
        queries: their transcript positions. (Q,)
        boundary: the history ends here.
        start: the history starts here (the prefix is always kept).
        reduce: "max" (the largest later query and head: planted facts) or "mean" (their mass).
        power: above 1, what is looked at hard by few counts more than what many glance at.

    Returns:
        (G, boundary - start), rows sum to 1
    """
    later = paid[:, :, queries >= boundary, start:boundary].flatten(1, 2)  # (G, R·Q', S')
    mass = (later.amax(1) if reduce == "max" else later.mean(1)) ** power
    return mass / mass.sum(-1, keepdim=True).clamp_min(1e-9)


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
