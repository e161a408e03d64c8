"""How much of what history is worth a compressed run keeps, on held-out dialogues."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from sonic_kv.compress.options import SessionConfig
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.model import SonicModel
from sonic_kv.training.objectives import Run, compressed, raw_rows, token_scores
from sonic_kv.training.options import PlanConfig
from sonic_kv.training.plan import draw_ends, draw_plan
from sonic_kv.training.teacher import run_alone, run_teacher

RATIOS = (0.5, 0.8, 0.9)


def session_plan(ratio: float, reencode: bool) -> PlanConfig:
    """A plan in which nothing is left to chance: what a session of default settings would do."""
    session = SessionConfig()
    return PlanConfig(
        ratio_min=ratio,
        ratio_max=ratio,
        ratio_jitter=0.0,
        segment_share=0.0,
        shared_share=1.0,
        raw_share=0.0 if reencode else 1.0,
        candidates=(session.candidates,),
        noise=(0.0,),
        group_tokens=(session.min_segment_tokens,),
        split_tokens=(session.max_segment_tokens,),
    )


@torch.no_grad()
def history_logits(
    model: SonicModel, adapter: Adapter, encoded: Encoded, run: Run | None = None
) -> tuple[Tensor, list[Tensor]]:
    """A dialogue's tokens from its first closing on, and logits there.

    Returns:
        token ids (T',); logits with history dropped, whole, and compressed at `RATIOS`, each (T', V)
    """
    plans = [session_plan(ratio, adapter.reencodes) for ratio in RATIOS]
    ids = torch.tensor(encoded.token_ids, device=model.device)
    ends = draw_ends(encoded, plans[0], random.Random(0))
    (teacher,) = run_teacher(model, [ids])
    (alone,) = run_alone(model, [ids], [encoded.prefix_length], [ends])
    scores = token_scores(adapter, teacher)
    found = [alone[ends[0] :], teacher.logits[ends[0] :]]
    for config in plans:
        plan = draw_plan(adapter, scores, encoded, ends, config, random.Random(0))
        rows = raw_rows(plan.layout, torch.arange(ends[0], len(ids)))
        with compressed(model, adapter, [ids], [plan], [rows], run or Run()) as (logits,):
            found.append(logits)
    return ids[ends[0] :], found


def history_losses(
    model: SonicModel, adapter: Adapter, dialogues: Sequence[Encoded], run: Run | None = None
) -> Tensor:
    """Summed loss on every token after the first segment: history dropped, whole, compressed at `RATIOS`.

    Returns:
        (2 + len(RATIOS),) float64, in nats
    """
    sums = torch.zeros(2 + len(RATIOS), dtype=torch.float64)
    for encoded in dialogues:
        ids, found = history_logits(model, adapter, encoded, run)
        losses = [
            float(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum"))
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
