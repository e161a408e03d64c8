"""What a batch of dialogues is trained towards: importance by damage, then choice or re-encoding by distillation."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sonic_kv.model.adapter import Adapter, same_rows
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.layout import Layout, pack
from sonic_kv.model.model import SonicModel
from sonic_kv.training import losses
from sonic_kv.training.choice import Told, divergence
from sonic_kv.training.damage import Damage, measure
from sonic_kv.training.options import PlanConfig
from sonic_kv.training.plan import Plan, draw_ends, draw_plan
from sonic_kv.training.teacher import Teacher, run_teacher

MOST_ENDS = 8  # of a dialogue's segments, at which damage is measured
MOST_TOKENS = 512  # of a dialogue whose entries the scorer learns from: what is kept of it has a bound
FORWARD_KL = 0.7  # share of forward KL in distillation
CHOICE = "choice"
NOISE = 0.1  # on the ranks from which is chosen, in units of the score


@dataclass(frozen=True)
class Run:
    """How an objective runs the base.

    Attributes:
        flex: FlexAttention for the compressed run.
        checkpointing: run the base's layers again in the backward pass instead of keeping their activations.
        bf16: products in bf16.
    """

    flex: bool = False
    checkpointing: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class Lesson:
    """One dialogue, ready to be learned from.

    Attributes:
        ends: where its segments are closed.
        rng: what is random about it.
        damage: of its entries, if the scorer is to learn.
        marked: ends at which the damage was measured.
    """

    encoded: Encoded
    ids: Tensor  # (T,)
    ends: list[int]
    rng: random.Random
    damage: Damage | None
    marked: list[int]


class Objective(Protocol):
    """What a batch is trained towards; a recipe may bring its own.

    Attributes:
        scorer_rests: the scorer learns importance in its own steps only.
        then: what is learned when these are over; empty: nothing.
        options: what else a run depends on, as JSON has it.
    """

    scorer_rests: bool
    then: str
    options: dict[str, Any]

    def read(self, batch: Sequence[Encoded], rngs: Sequence[random.Random], *, scorer: bool) -> list[Any]:
        """Run the base over dialogues that share its forwards; what it shows can be learned from several times.

        Args:
            rngs: what is random about each dialogue.
            scorer: the scorer is to learn from it.
        """

    def backward(
        self, lessons: Sequence[Any], scale: float, *, scorer: bool = True, student: bool = True
    ) -> dict[str, float]:
        """Accumulate the gradients of `scale` × the dialogues' summed losses; returns each loss's sum.

        Args:
            lessons: of `read`; they share their forwards.
            scorer: let the scorer learn importance.
            student: run the compressed forward, for what comes `then`.
        """


class DamageObjective:
    """Scores learn expected damage; then what the choices that they make cost together. Or, if there is a LoRA, that
    learns to give kept entries what was dropped around them."""

    scorer_rests = True

    def __init__(self, model: SonicModel, adapter: Adapter, plans: PlanConfig, run: Run) -> None:
        self.model, self.adapter, self.plans, self.how = model, adapter, plans, run
        self.then = "re-encoding" if adapter.reencodes else CHOICE
        self.options: dict[str, Any] = {"objective": "damage", "plan": asdict(plans)}

    def read(
        self, batch: Sequence[Encoded], rngs: Sequence[random.Random], *, scorer: bool = True
    ) -> list[Lesson]:
        ids = [torch.tensor(encoded.token_ids, device=self.model.device) for encoded in batch]
        ends = [draw_ends(encoded, self.plans, rng) for encoded, rng in zip(batch, rngs, strict=True)]
        marked = [sorted(rng.sample(e, min(MOST_ENDS, len(e)))) for e, rng in zip(ends, rngs, strict=True)]
        found: list[Damage | None] = [None] * len(ids)
        if scorer:
            rows = [predicting(encoded, stops[0]) for encoded, stops in zip(batch, ends, strict=True)]
            seeds = [rng.getrandbits(48) for rng in rngs]
            with self._autocast(), checkpointed(self.model.twin, self.how.checkpointing):
                whole = measure(self.model, ids, marked, rows, seeds)
            # what waits for its next turn waits in the machine's memory, not in the device's
            home = torch.device("cpu")
            found = [d.some(MOST_TOKENS, seed).to(home) for d, seed in zip(whole, seeds, strict=True)]
        return [Lesson(*parts) for parts in zip(batch, ids, ends, rngs, found, marked, strict=True)]

    def backward(
        self, lessons: Sequence[Lesson], scale: float, *, scorer: bool = True, student: bool = True
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        with self._autocast():
            if scorer:
                importance = self.importance(lessons)
                if importance.requires_grad:
                    (scale * importance).backward()
                found["importance"] = importance.item()
            if student and not self.adapter.reencodes:
                choice = self.choice(lessons)
                (scale * choice).backward()
                found["choice"] = choice.item()
            elif student:
                with self.distillation(lessons) as loss:
                    if loss.requires_grad:  # something was re-encoded
                        (scale * loss).backward()
                    found["distillation"] = loss.item()
        return found

    def importance(self, lessons: Sequence[Lesson]) -> Tensor:
        """`losses.importance`, summed over the dialogues."""
        total = torch.zeros((), device=self.model.device)
        for lesson in lessons:
            assert lesson.damage is not None
            prefix, scorer = lesson.encoded.prefix_length, self.adapter.scorer
            damage = lesson.damage.to(self.model.device)
            loss = losses.importance(scorer, damage, prefix, lesson.marked)
            total = total if loss is None else total + loss
        return total

    def choice(self, lessons: Sequence[Lesson]) -> Tensor:
        """`choice.divergence` under budgets drawn at random, summed over the dialogues."""
        with checkpointed(self.model.twin, self.how.checkpointing):
            return divergence(self.model, self.adapter.scorer, [self._told(one) for one in lessons]).sum()

    def _told(self, lesson: Lesson) -> Told:
        """A lesson's budget: the share that it keeps is drawn from a log-uniform distribution."""
        least, most = 1.0 - self.plans.ratio_max, 1.0 - self.plans.ratio_min
        keep = math.exp(lesson.rng.uniform(math.log(least), math.log(most)))
        alike = lesson.rng.random() >= self.plans.shared_share
        rows = predicting(lesson.encoded, lesson.marked[0])
        return Told(
            ids=lesson.ids,
            prefix=lesson.encoded.prefix_length,
            ends=lesson.marked,
            rows=rows,
            ratio=1.0 - keep,
            alike=alike,
            noise=NOISE,
            seed=lesson.rng.getrandbits(48),
        )

    @contextmanager
    def distillation(self, lessons: Sequence[Lesson]) -> Iterator[Tensor]:
        """`losses.distillation` under budgets drawn at random, summed. Run the backward pass inside."""
        ids = [lesson.ids for lesson in lessons]
        teachers = run_teacher(self.model, ids)
        plans = [
            draw_plan(
                self.adapter,
                token_scores(self.adapter, teacher),
                lesson.encoded,
                lesson.ends,
                self.plans,
                lesson.rng,
            )
            for lesson, teacher in zip(lessons, teachers, strict=True)
        ]
        after = [
            raw_rows(plan.layout, torch.arange(lesson.ends[0], len(lesson.ids)))
            for plan, lesson in zip(plans, lessons, strict=True)
        ]
        with compressed(self.model, self.adapter, ids, plans, after, self.how) as logits:
            yield sum_of(
                [
                    losses.distillation(student, teacher.logits[lesson.ends[0] :], FORWARD_KL)
                    for student, teacher, lesson in zip(logits, teachers, lessons, strict=True)
                ]
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.how.bf16)


@contextmanager
def compressed(
    model: SonicModel,
    adapter: Adapter,
    ids: Sequence[Tensor],
    plans: Sequence[Plan],
    rows: Sequence[Tensor],
    run: Run,
    **options: Any,
) -> Iterator[list[Tensor]]:
    """One compressed forward over packed dialogues: logits of chosen rows. Run the backward pass inside.

    Args:
        ids: each (T,)
        rows: of each dialogue's layout, those whose logits are wanted. Each (R,)
        options: of `SonicModel.one_pass`.

    Yields:
        each (R, V)
    """
    layout, lifetime = pack([plan.layout for plan in plans], [plan.lifetime for plan in plans])
    sizes = [plan.layout.index.shape[-1] for plan in plans]
    at = [sum(sizes[:n]) + part for n, part in enumerate(rows)]
    with checkpointed(adapter.twin, run.checkpointing):
        logits = model.one_pass(
            torch.cat(list(ids))[None],
            layout.to(model.device),
            [life.to(model.device) for life in lifetime],
            rows=torch.cat(at).to(model.device),
            flex=run.flex,
            **options,
        )[0]
        yield list(logits.split([len(part) for part in rows]))


@torch.no_grad()
def token_scores(adapter: Adapter, teacher: Teacher) -> list[Tensor]:
    """Importance of every token, recency apart. Per layer (1, G, T)"""
    return [adapter.scorer(n, k, teacher.values[n]) for n, k in enumerate(teacher.keys)]


def predicting(encoded: Encoded, first: int) -> Tensor:
    """Positions from `first` on that predict a token of a reply; if there are none, all of them.

    What a reply is made of is what history is kept for: messages of the user are given.
    """
    replies = [t for t in range(first, len(encoded.token_ids) - 1) if encoded.assistant[t + 1]]
    return torch.tensor(replies or range(first, len(encoded.token_ids)))


def raw_rows(layout: Layout, positions: Tensor) -> Tensor:
    """The raw rows of ascending transcript positions of one dialogue."""
    raw = (~layout.nexus[0]).nonzero()[:, 0].cpu()
    return raw[positions]


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """The sum of several losses."""
    return torch.stack(list(values)).sum()


@contextmanager
def checkpointed(base: Any, on: bool) -> Iterator[None]:
    """Gradient checkpointing of the base's layers, which transformers ties to training mode."""
    if not on:
        yield
        return
    name = (
        "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    )  # older transformers
    kwargs = {f"{name}_checkpointing_kwargs": {"use_reentrant": False, "context_fn": same_rows}}
    getattr(base, f"{name}_checkpointing_enable")(**kwargs)
    base.train()
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    try:
        yield
    finally:
        base.eval()
        getattr(base, f"{name}_checkpointing_disable")()
