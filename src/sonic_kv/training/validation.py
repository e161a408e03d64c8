"""How much of what history is worth a compressed run keeps, on held-out dialogues."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from sonic_kv.config import PlanConfig, SessionConfig
from sonic_kv.segments import Encoded
from sonic_kv.training.objectives import Objective, raw_rows
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
        raw_share=0.0 if reencode else 1.0,
        candidates=(session.candidates,),
        noise=(0.0,),
        group_tokens=(session.min_segment_tokens,),
        split_tokens=(session.max_segment_tokens,),
    )


@torch.no_grad()
def history_losses(objective: Objective, dialogues: Sequence[Encoded]) -> Tensor:
    """Summed loss on every token after the first segment: history dropped, whole, compressed at `RATIOS`.

    Returns:
        (2 + len(RATIOS),) float64, in nats
    """
    model, adapter = objective.model, objective.adapter
    plans = [session_plan(ratio, adapter.reencodes) for ratio in RATIOS]
    sums = torch.zeros(2 + len(RATIOS), dtype=torch.float64)
    reader = Objective(model, adapter, objective.config, plans[0], always_alone=True)
    for encoded in dialogues:
        (lesson,) = reader.read([encoded], [random.Random(0)])
        targets, first = lesson.ids[lesson.first + 1 :], lesson.first

        def loss(logits: Tensor, targets: Tensor = targets) -> float:
            return float(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"))

        assert lesson.alone is not None
        found = [loss(lesson.alone[first:-1]), loss(lesson.teacher.logits[first:-1])]
        for config in plans:
            plan = draw_plan(
                adapter, reader.scores(lesson.teacher), encoded, lesson.ends, config, random.Random(0)
            )
            layout = plan.layout.to(model.device)
            rows = raw_rows(plan.layout, torch.arange(first, len(lesson.ids) - 1)).to(model.device)
            with adapter.attached(layout.nexus):
                lifetime = [life.to(model.device) for life in plan.lifetime]
                found.append(loss(model.one_pass(lesson.ids[None], layout, lifetime, rows=rows)[0]))
        sums += torch.tensor(found, dtype=torch.float64)
    return sums


def recovery(sums: Tensor) -> dict[str, float]:
    """Recovery at each of `RATIOS`, and their mean, of the sums of `history_losses`."""
    none, full = float(sums[0]), float(sums[1])
    found = {
        f"recovery@{ratio}": (none - float(s)) / (none - full)
        for ratio, s in zip(RATIOS, sums[2:], strict=True)
    }
    return {**found, "recovery": sum(found.values()) / len(found)}
