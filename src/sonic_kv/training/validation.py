"""How much of what history is worth a compressed run keeps, on held-out dialogues."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from sonic_kv.compress.options import SessionConfig
from sonic_kv.model.chat_format import Encoded
from sonic_kv.training.objectives import Lesson, Objective, raw_rows
from sonic_kv.training.options import PlanConfig
from sonic_kv.training.plan import draw_plan

RATIOS = (0.5, 0.8, 0.9)


def session_plan(ratio: float, reencode: bool) -> PlanConfig:
    """A plan in which nothing is left to chance: what a session of default settings would do."""
    session = SessionConfig()
    return PlanConfig(
        ratio_min=ratio,
        ratio_max=ratio,
        ratio_jitter=0.0,
        shrink_share=0.0,
        random_share=0.0,
        segment_share=0.0,
        pooled_share=1.0,
        raw_share=0.0 if reencode else 1.0,
        candidates=(session.candidates,),
        noise=(0.0,),
        group_tokens=(session.min_segment_tokens,),
        split_tokens=(session.max_segment_tokens,),
    )


@torch.no_grad()
def history_logits(objective: Objective, encoded: Encoded) -> tuple[Lesson, list[Tensor]]:
    """A dialogue, and logits from its first closing on: history dropped, whole, compressed at `RATIOS`. Each (T', V)"""
    model, adapter = objective.model, objective.adapter
    plans = [session_plan(ratio, adapter.reencodes) for ratio in RATIOS]
    reader = Objective(model, adapter, objective.config, plans[0], always_alone=True)
    (lesson,) = reader.read([encoded], [random.Random(0)])
    assert lesson.alone is not None
    found = [lesson.alone[lesson.first :], lesson.teacher.logits[lesson.first :]]
    for config in plans:
        plan = draw_plan(
            adapter, reader.scores(lesson.teacher), encoded, lesson.ends, config, random.Random(0)
        )
        layout = plan.layout.to(model.device)
        rows = raw_rows(plan.layout, torch.arange(lesson.first, len(lesson.ids))).to(model.device)
        lifetime = [life.to(model.device) for life in plan.lifetime]
        found.append(model.one_pass(lesson.ids[None], layout, lifetime, rows=rows)[0])
    return lesson, found


def history_losses(objective: Objective, dialogues: Sequence[Encoded]) -> Tensor:
    """Summed loss on every token after the first segment: history dropped, whole, compressed at `RATIOS`.

    Returns:
        (2 + len(RATIOS),) float64, in nats
    """
    sums = torch.zeros(2 + len(RATIOS), dtype=torch.float64)
    for encoded in dialogues:
        lesson, found = history_logits(objective, encoded)
        targets = lesson.ids[lesson.first + 1 :]
        losses = [
            float(torch.nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="sum"))
            for logits in found
        ]
        sums += torch.tensor(losses, dtype=torch.float64)
    return sums


def recovery(sums: Tensor) -> dict[str, float]:
    """Recovery at each of `RATIOS`, and their mean, of the sums of `history_losses`."""
    none, full = float(sums[0]), float(sums[1])
    found = {
        f"recovery@{ratio}": (none - float(s)) / (none - full)
        for ratio, s in zip(RATIOS, sums[2:], strict=True)
    }
    return {**found, "recovery": sum(found.values()) / len(found)}
