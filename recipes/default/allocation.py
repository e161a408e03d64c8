"""How a budget is shared among layers, heads and segments, with everything else alike: the shipped adapter, the same
number of entries.

    python allocation.py

Shared by what is given to a segment's tokens (nothing: by length; surprisal; attention received so far; the scorer's
importance with recency), each head then keeps its best ones of every segment; or each head chooses over the whole
history; or all layers and heads share one total, which is the default. KL recovery on the dialogues of
`ablations.py`, paired.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from ablations import DATA, RATIOS, compare, divergences, held_out
from torch import Tensor
from tqdm import tqdm

import sonic_kv.training.plan
from sonic_kv import SonicModel
from sonic_kv.cache.cache import Lengths
from sonic_kv.compress.closing import Kept, close
from sonic_kv.compress.options import Allocation, Budget
from sonic_kv.model.chat_format import Encoded
from sonic_kv.text import table
from sonic_kv.training.objectives import Objective
from sonic_kv.training.options import LossConfig, PlanConfig
from sonic_kv.training.teacher import Teacher, run_teacher

Weigh = Callable[[int], Tensor]  # tokens' weights at a closing, from its transcript position. (T,)


def sharing(allocation: Allocation, weigh: Weigh | None = None) -> Callable[..., Kept]:
    """`close` that shares entries so, among segments by their tokens' weights if there are any."""

    def chosen(
        scores: Sequence[Tensor],
        positions: Sequence[Tensor],
        lengths: Lengths,
        budget: Budget,
        *_: Any,
        **__: Any,
    ) -> Kept:
        def of_segments(_: list[int]) -> list[float]:
            assert weigh is not None
            token = weigh(lengths.closed)
            return [float(token[a:b].sum()) for a, b in pairwise([*lengths.segment_starts, lengths.closed])]

        return close(scores, positions, lengths, budget, allocation, weigh=of_segments if weigh else None)

    return chosen


def surprisal(ids: Tensor, teacher: Teacher) -> Tensor:
    """−log p of each token in the full-context base. (T,)"""
    chances = teacher.logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return torch.cat((chances.new_zeros(1), -chances))


def received(teacher: Teacher, end: int) -> Tensor:
    """Attention that each token got from the queries before `end`, over all layers and heads. (T,)"""
    return torch.stack([paid[:, :, :end].sum((0, 1, 2)) for paid in teacher.paid]).sum(0)


def rules(model: SonicModel, encoded: Encoded) -> dict[str, Callable[..., Kept]]:
    """What takes the place of `close`, by name."""
    ids = torch.tensor(encoded.token_ids)
    with torch.no_grad():
        (teacher,) = run_teacher(model, [ids], [torch.arange(len(ids))])
    given: dict[str, Weigh] = {
        "by length": lambda end: torch.ones(len(ids)),
        "by surprisal": lambda end: surprisal(ids, teacher),
        "by attention received": lambda end: received(teacher, end),
    }
    return {
        "layers and heads share one total": sharing("shared"),
        "heads choose over the whole history": sharing("per_head"),
        "by the scorer's importance": sharing("segment"),
        **{name: sharing("segment", weigh) for name, weigh in given.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held-out", type=Path, default=DATA, help="folder of the real sources")
    parser.add_argument("--dialogues", type=int, default=32, help="held-out dialogues of each kind")
    arguments = parser.parse_args()
    model = SonicModel.from_pretrained("tiny")
    assert model.adapter is not None
    objective = Objective(model, model.adapter, LossConfig(importance_need=0.0), PlanConfig())
    found: dict[str, dict[str, list[list[float]]]] = {}
    for suite, dialogues in held_out(model, arguments.held_out, arguments.dialogues).items():
        for encoded in tqdm(dialogues, desc=suite):
            for name, rule in rules(model, encoded).items():
                sonic_kv.training.plan.close = rule  # type: ignore[attr-defined]
                found.setdefault(name, {}).setdefault(suite, []).append(divergences(objective, encoded))
    rows = []
    base = {suite: torch.tensor(of) for suite, of in next(iter(found.values())).items()}
    for name, suites in found.items():
        row = [name]
        for suite, of in suites.items():
            row += [
                f"{mean:.3f} ({low:+.3f} to {high:+.3f})"
                for mean, _, low, high in zip(*compare(torch.tensor(of), base[suite]), strict=True)
            ]
        rows.append(row)
    print(table(["shared", *(f"{suite} {ratio:.0%}" for suite in base for ratio in RATIOS)], rows))
