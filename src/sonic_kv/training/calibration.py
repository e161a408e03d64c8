"""What the scorer's loss leaves open: one constant per layer and KV head, by which heads compete for a shared budget.

The importance loss compares entries of one head with each other; a head's scores may all be higher by a constant.
The constants begin where a head's scores sum to the square of the attention that it pays to history, and are then
varied at random: what brings the model closer to full context, with the selection as hard as in a session, is kept
(an evolution strategy with mirrored samples, arXiv:1703.03864). Gradients through a soft selection did not find
these constants, and scales beside them did not hold on other dialogues: docs/log.md.
"""

import math
import random
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from sonic_kv.model.chat_format import Encoded
from sonic_kv.model.layout import pack
from sonic_kv.model.reread import portions
from sonic_kv.training.objectives import Lesson, Objective, raw_rows
from sonic_kv.training.plan import draw_plan
from sonic_kv.training.validation import RATIOS, session_plan

PAIRS = 6  # of mirrored samples a round
BEST = (0.4, 0.3, 0.2, 0.1)  # weights of the best samples
STEP, DECAY = 0.4, 0.96  # of the samples, in nats
Spread = Callable[[Callable[[Tensor], float], Tensor], list[float]]


@torch.no_grad()
def calibrate(
    objective: Objective,
    batches: Sequence[Sequence[Encoded]],
    rounds: int,
    seed: int,
    spread: Spread,
    progress: Callable[[dict[str, float]], None] = lambda record: None,
) -> None:
    """Set the constants of the adapter's scorer.

    Args:
        batches: dialogues; a round looks at one batch.
        spread: gives a function of every sample of a round, perhaps from several processes.
        progress: gets every round's number and its samples' mean KL divergence, 1 being that of the start.
    """
    model, adapter = objective.model, objective.adapter
    reader = Objective(model, adapter, objective.config, session_plan(RATIOS[0], reencode=False))
    # one at a time: what a packed teacher saw would be held as long as any dialogue of it
    lessons = [[reader.read([one], [random.Random(seed)])[0] for one in batch] for batch in batches]
    scores = [[reader.scores(lesson.teacher) for lesson in batch] for batch in lessons]
    constants = _attention(reader, [*chain(*lessons)], [*chain(*scores)])  # (layers, G)
    measures = [_relative(reader, batch, raw, constants) for batch, raw in zip(lessons, scores, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    for number in range(rounds):
        half = torch.randn(PAIRS, *constants.shape, generator=generator).to(constants.device)
        samples = constants + STEP * DECAY**number * torch.cat((half, -half))
        found = torch.tensor(spread(measures[number % len(measures)], samples))
        best = found.argsort()[: len(BEST)].tolist()
        constants = sum(
            (w * samples[i] for w, i in zip(BEST, best, strict=True)), torch.zeros_like(constants)
        )
        progress({"round": number + 1, "kl": round(float(found.mean()), 5)})
    for head, constant in zip(adapter.scorer.down, constants, strict=True):
        head.bias += constant.to(head.bias)


def _relative(
    reader: Objective, lessons: Sequence[Lesson], scores: Sequence[Sequence[Tensor]], start: Tensor
) -> Callable[[Tensor], float]:
    """The divergence with a sample's constants, 1 being that with `start`; every ratio counts as much."""
    unit = divergences(reader, lessons, _raised(scores, start)).clamp_min(1e-9)
    return lambda sample: float((divergences(reader, lessons, _raised(scores, sample)) / unit).mean())


def _raised(scores: Sequence[Sequence[Tensor]], constants: Tensor) -> list[list[Tensor]]:
    """Each dialogue's scores with the constants added."""
    return [[s + c[:, None] for s, c in zip(layers, constants, strict=True)] for layers in scores]


def divergences(reader: Objective, lessons: Sequence[Lesson], scores: Sequence[Sequence[Tensor]]) -> Tensor:
    """KL divergence from full context when the raw entries that sessions would choose are kept, in nats a token.

    Args:
        scores: of each dialogue, per layer. (1, G, T)

    Returns:
        at each of `RATIOS`. (ratios,)
    """
    rows = sum(len(lesson.ids) - lesson.first for lesson in lessons)
    parts = [*portions([*zip(lessons, scores, strict=True)], lambda pair: len(pair[0].ids))]
    return torch.tensor([sum(_divergence(reader, part, ratio) for part in parts) / rows for ratio in RATIOS])


def _divergence(reader: Objective, scored: Sequence[tuple[Lesson, Sequence[Tensor]]], ratio: float) -> float:
    """Summed over the tokens of as many dialogues as fit into a forward."""
    model, config = reader.model, session_plan(ratio, reencode=False)
    lessons = [lesson for lesson, _ in scored]
    plans = [
        draw_plan(reader.adapter, scores, lesson.encoded, lesson.ends, config, random.Random(0))
        for lesson, scores in scored
    ]
    layout, lifetime = pack([plan.layout for plan in plans], [plan.lifetime for plan in plans])
    begin, after = 0, []
    for lesson, plan in zip(lessons, plans, strict=True):
        after.append(begin + raw_rows(plan.layout, torch.arange(lesson.first, len(lesson.ids))))
        begin += plan.layout.index.shape[-1]
    logits = model.one_pass(
        torch.cat([lesson.ids for lesson in lessons])[None],
        layout.to(model.device),
        [life.to(model.device) for life in lifetime],
        rows=torch.cat(after).to(model.device),
    )[0]
    total = 0.0
    for lesson, mine in zip(lessons, logits.split([len(rows) for rows in after]), strict=True):
        full = lesson.teacher.logits[lesson.first :].float().log_softmax(-1)
        total += float((full.exp() * (full - mine.float().log_softmax(-1))).sum())
    return total


def _attention(reader: Objective, lessons: Sequence[Lesson], raw: Sequence[Sequence[Tensor]]) -> Tensor:
    """Constants with which a head's scores sum to the square of the attention that it pays to history. (layers, G)"""
    recency = reader.adapter.scorer.recency
    paid, scored, seen = [], [], 0
    for lesson, scores in zip(lessons, raw, strict=True):
        start, teacher = lesson.encoded.prefix_length, lesson.teacher
        for end, stop in zip(lesson.ends, [*lesson.ends[1:], len(lesson.ids)], strict=True):
            now = (teacher.queries >= end) & (teacher.queries < stop)
            distance = torch.arange(end - start, 0, -1, device=scores[0].device)
            history = [
                s[0, :, start:end] + recency(n, distance.expand(s.shape[1], -1)) for n, s in enumerate(scores)
            ]
            scored.append(torch.stack([s.logsumexp(-1) - math.log(end - start) for s in history]))
            paid.append(
                torch.stack([p[:, :, now, start:end].sum((1, 2, 3)) / p.shape[1] for p in teacher.paid])
            )
            seen += int(now.sum())
    mass = torch.stack(paid).sum(0) / max(seen, 1)
    return 2 * mass.clamp_min(1e-4).log() - torch.stack(scored).mean(0)
