"""One function per loss, with its equation. What each is worth stands in docs/log."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sonic_kv.model.adapter import ImportanceScorer
from sonic_kv.training.damage import Damage

CHUNK = 1024  # rows that have full-vocabulary distributions at a time
LEAST = 1e-12  # nats; below it an entry counts as this
POWERS = {
    0.5: 1.0,
    0.8: 0.5,
}  # of damage, and what the distribution by each weighs: the second looks at the top


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


def distillation(student: Tensor, teacher: Tensor, forward_share: float) -> Tensor:
    """KL between the full-context base and the compressed run, mean over tokens.

    λ · KL(p_T ‖ p_S) + (1 − λ) · KL(p_S ‖ p_T): forward KL covers what the teacher would say, reverse
    KL keeps the student from saying what it would not (KV-Distill, arXiv:2503.10337).

    Args:
        student, teacher: logits. (T, V)
        forward_share: λ in [0, 1].
    """

    def mixture(student: Tensor, teacher: Tensor) -> Tensor:
        log_p, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
        return forward_share * kl(log_t, log_p) + (1.0 - forward_share) * kl(log_p, log_t)

    return by_rows(mixture, student, teacher).mean()


def importance(scorer: ImportanceScorer, damage: Damage, start: int, ends: Sequence[int]) -> Tensor | None:
    """KL divergence from the entries' share of later damage to the softmax of their scores, in nats.

    One distribution covers the entries of all layers and heads, since they compete for one budget: p_i ∝ √D_i against
    softmax(score + recency), at the end of every segment, mean over these. A score is thus ½ log D, up to a constant.
    The same with D_i^0.8, against the softmax of scores as much steeper, sees to the order of the entries that
    cost most, which small budgets keep.

    Args:
        start: history begins here: the prefix is always kept.
        ends: where the dialogue's segments close, as `damage` was measured.

    Returns:
        None: no segment is followed by a prediction that counts
    """
    entries = zip(damage.keys, damage.values, strict=True)
    raw = torch.cat([scorer(n, k, v) for n, (k, v) in enumerate(entries)])  # (layers, G, S)
    at = damage.positions
    histories = [(segment, end, (at >= start) & (at < end)) for segment, end in enumerate(ends, start=1)]

    def divergence(raw: Tensor, segment: int, end: int, history: Tensor) -> Tensor:
        logs = damage.after(segment)[..., history].clamp_min(LEAST).log().flatten()
        distance = (end - at[history]).expand(raw.shape[1], -1)
        recency = torch.stack([scorer.recency(n, distance) for n in range(len(raw))])
        scores = 2.0 * (raw[..., history] + recency).flatten()  # of log D
        return torch.stack(
            [
                weight * kl((power * logs).log_softmax(-1), (power * scores).log_softmax(-1))
                for power, weight in POWERS.items()
            ]
        ).sum()

    # what is made at a segment's end is made again in the backward pass: held for all of them it would grow with
    # the square of the dialogue's length
    found = [
        checkpoint(divergence, raw, segment, end, history, use_reentrant=False)
        for segment, end, history in histories
        if bool(damage.after(segment)[..., history].any())
    ]
    return torch.stack(found).mean() if found else None
