"""What a batch of dialogues is trained towards: teacher, plans, one compressed forward, named losses."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sonic_kv.model.adapter import Adapter, same_rows
from sonic_kv.model.chat_format import Encoded
from sonic_kv.model.layout import Layout, pack
from sonic_kv.model.model import SonicModel
from sonic_kv.model.probe import Probe
from sonic_kv.training import losses
from sonic_kv.training.options import LossConfig, PlanConfig
from sonic_kv.training.plan import Plan, draw_ends, draw_plan
from sonic_kv.training.teacher import Teacher, offsets, run_alone, run_teacher

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """One dialogue, ready to be learned from."""

    encoded: Encoded
    ids: Tensor  # (T,)
    ends: list[int]
    teacher: Teacher
    alone: Tensor | None  # logits of its segments without history, if they were asked for (T, V)
    need: Tensor | None  # how much every row's prediction needs the history (T,)
    rng: random.Random

    @property
    def first(self) -> int:
        """Transcript position of the first token that has a compressed history."""
        return self.ends[0]

    def weights(self, rows: Tensor, largest: float) -> Tensor | None:
        """exp(min(need, largest)) of the predictions at `rows`; None: all alike."""
        return self.need[rows].clamp(max=largest).exp() if self.need is not None and largest else None


@dataclass(frozen=True)
class Part:
    """A dialogue's rows in the packed student forward."""

    token_ids: Tensor
    plan: Plan
    rows: slice
    after: Tensor  # rows, from the part's start, whose logits are needed
    watched: Tensor  # rows, from the part's start, that the probe observes


class Objective:
    """The losses of `config` on budgets drawn as `plans` says.

    Args:
        flex: FlexAttention for the compressed run.
        checkpointing: run the base's layers again in the backward pass instead of keeping their activations.
        always_alone: run the base without history even if no loss asks for it, and keep its logits.
    """

    def __init__(
        self,
        model: SonicModel,
        adapter: Adapter,
        config: LossConfig,
        plans: PlanConfig,
        *,
        flex: bool = False,
        checkpointing: bool = False,
        bf16: bool = False,
        always_alone: bool = False,
    ) -> None:
        self.model, self.adapter, self.config, self.plans = model, adapter, config, plans
        self.flex, self.checkpointing, self.bf16 = flex, checkpointing, bf16
        weighted = ("distillation", "ce", "attention", "output", "ignored", "coverage", "reconstruction")
        self.has_student = adapter.reencodes and any(getattr(config, f"{name}_weight") for name in weighted)
        self._watching = bool(
            config.attention_weight or config.output_weight or config.ignored_weight or config.coverage_weight
        )
        self._keep_alone = always_alone
        self._alone = always_alone or bool(
            config.importance_need or config.distillation_need or config.ce_weight
        )

    def backward(
        self,
        batch: Sequence[Encoded],
        rngs: Sequence[random.Random],
        scale: float,
        *,
        scorer: bool = True,
        student: bool = True,
    ) -> dict[str, float]:
        """Accumulate the gradients of `scale` × the dialogues' summed losses; returns each loss's sum.

        Args:
            rngs: what is random about each dialogue.
            scorer: let the scorer learn importance.
            student: run the compressed forward.
        """
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            lessons = self.read(batch, rngs)
            found: list[Named] = []
            if scorer and self.config.importance_weight:
                found.append({"importance": sum_of(self.importance(lesson) for lesson in lessons)})
                (scale * self.config.importance_weight * found[-1]["importance"]).backward()
            if student and self.has_student:
                with self.compressed(lessons) as named:
                    found.append(named)
                    total = sum_of(
                        getattr(self.config, f"{name}_weight") * loss for name, loss in named.items()
                    )
                    if total.requires_grad:
                        (scale * total).backward()
        return {name: loss.item() for named in found for name, loss in named.items()}

    def read(self, batch: Sequence[Encoded], rngs: Sequence[random.Random]) -> list[Lesson]:
        """Run the base over the dialogues, whole and, if a loss asks for it, segment by segment."""
        ids = [torch.tensor(encoded.token_ids, device=self.model.device) for encoded in batch]
        ends = [draw_ends(encoded, self.plans, rng) for encoded, rng in zip(batch, rngs, strict=True)]
        queries = []
        for tokens, stops, rng in zip(ids, ends, rngs, strict=True):
            later = range(stops[0], len(tokens))
            drawn = rng.sample(later, min(self.config.importance_queries, len(later)))
            queries.append(torch.tensor(sorted(drawn), device=self.model.device))
        teachers = run_teacher(self.model, ids, queries)
        alone: list[Tensor | None] = [None] * len(ids)
        needs: list[Tensor | None] = [None] * len(ids)
        if self._alone:
            alone = [*run_alone(self.model, ids, [encoded.prefix_length for encoded in batch], ends)]
            needs = [
                losses.need(t.logits, own) for t, own in zip(teachers, alone, strict=True) if own is not None
            ]
        if not self._keep_alone:
            alone = [None] * len(ids)
        return [Lesson(*parts) for parts in zip(batch, ids, ends, teachers, alone, needs, rngs, strict=True)]

    def scores(self, teacher: Teacher) -> list[Tensor]:
        """Importance of every token, recency apart. Per layer (1, G, T)"""
        return [self.adapter.scorer(n, k, teacher.values[n]) for n, k in enumerate(teacher.keys)]

    def targets(self, lesson: Lesson, layer: int, start: int, ends: Sequence[int]) -> list[Tensor]:
        """What queries after each end attend to in [start, end). Each (G, end - start)"""
        teacher, config, weights = lesson.teacher, self.config, None
        if lesson.need is not None and config.importance_need:
            weights = losses.query_weights(lesson.need[teacher.queries], config.importance_need)
        return losses.attention_targets(
            teacher.paid[layer], teacher.queries, ends, start, config.importance_norm, weights
        )

    def importance(self, lesson: Lesson) -> Tensor:
        """`losses.importance`, mean over all boundaries that queries follow."""
        found, start, scorer = [], lesson.encoded.prefix_length, self.adapter.scorer
        raw = [scores[0] for scores in self.scores(lesson.teacher)]  # (G, T)
        last = int(lesson.teacher.queries[-1])
        ends = [end for end in lesson.ends if end <= last]
        targets = [self.targets(lesson, n, start, ends) for n in range(len(raw))]
        for end, *of_layers in zip(ends, *targets, strict=True):
            distance = (end - torch.arange(start, end, device=raw[0].device)).expand(raw[0].shape[0], -1)
            scores = [s[:, start:end] + scorer.recency(n, distance) for n, s in enumerate(raw)]
            found.append(losses.importance(scores, of_layers))
        return torch.stack(found).mean()

    @contextmanager
    def compressed(self, lessons: Sequence[Lesson]) -> Iterator[Named]:
        """The losses of one compressed forward over all dialogues. Run the backward pass inside."""
        config, model = self.config, self.model
        parts: list[Part] = []
        for lesson in lessons:
            plan = draw_plan(
                self.adapter, self.scores(lesson.teacher), lesson.encoded, lesson.ends, self.plans, lesson.rng
            )
            after = raw_rows(plan.layout, torch.arange(lesson.first, len(lesson.ids)))
            parts.append(self.part(lesson, lesson.ids, plan, after, parts))
        if config.reconstruction_weight:
            for lesson in lessons:
                ids, plan, after = self.repetition(lesson)
                parts.append(self.part(None, ids, plan, after, parts))
        layout, lifetime = pack([p.plan.layout for p in parts], [p.plan.lifetime for p in parts])
        layout, lifetime = layout.to(model.device), [life.to(model.device) for life in lifetime]
        layers = lessons[0].rng.sample(range(model.num_layers), min(config.observed_layers, model.num_layers))
        probe = None
        if self._watching:
            probe = Probe(torch.cat([p.rows.start + p.watched for p in parts])[None].to(model.device), layers)
        with checkpointed(self.adapter.twin, self.checkpointing):
            logits = model.one_pass(
                torch.cat([p.token_ids for p in parts])[None],
                layout,
                lifetime,
                rows=torch.cat([p.rows.start + p.after for p in parts]).to(model.device),
                flex=self.flex,
                probe=probe,
            )[0].split([len(p.after) for p in parts])
            named: list[Named] = []
            watched = offsets([len(p.watched) for p in parts])
            for lesson, part, student, first in zip(lessons, parts, logits, watched, strict=False):
                named.append(self.token_losses(lesson, student))
                if probe is not None:
                    rows = slice(first, first + len(part.watched))
                    for layer in layers:
                        seen = probe.seen[layer][0, :, :, rows, part.rows]
                        named.append(
                            self.attention_losses(
                                lesson, part, layer, seen, probe.outputs[layer][0, :, :, rows], len(layers)
                            )
                        )
            for part, student in zip(parts[len(lessons) :], logits[len(lessons) :], strict=True):
                size = len(part.after)
                ones = torch.ones(size - 1, device=model.device)
                repeated = part.token_ids[-size:]
                named.append({"reconstruction": losses.cross_entropy(student[:-1], repeated[1:], ones)})
            names = {name: None for losses_of in named for name in losses_of}
            yield {name: sum_of(found[name] for found in named if name in found) for name in names}

    def token_losses(self, lesson: Lesson, student: Tensor) -> Named:
        """The losses on what is said. `student`: logits of every token after the first closing. (T', V)"""
        config, found, first = self.config, Named(), lesson.first
        rows = torch.arange(first, len(lesson.ids), device=student.device)
        if config.distillation_weight:
            weights = lesson.weights(rows, config.distillation_need)
            found["distillation"] = losses.distillation(
                student, lesson.teacher.logits[first:], config.forward_kl, weights
            )
        if config.ce_weight:
            written = torch.tensor(lesson.encoded.assistant[first + 1 :], device=student.device)
            weights = lesson.weights(rows[:-1], config.ce_need)
            found["ce"] = losses.cross_entropy(
                student[:-1], lesson.ids[first + 1 :], written * (1.0 if weights is None else weights)
            )
        return found

    def attention_losses(
        self, lesson: Lesson, part: Part, layer: int, seen: Tensor, read: Tensor, layers: int
    ) -> Named:
        """The losses on what is looked at, in one of `layers` layers.

        Args:
            seen: attention of the part's watched rows. (G, R, Q, T)
            read: their attention outputs. (G, R, Q, D)
        """
        config, teacher, layout, found = self.config, lesson.teacher, part.plan.layout, Named()
        queries = part.watched[~layout.nexus[0, part.watched]]  # the other watched rows are Nexus tokens
        later, count = len(queries), len(lesson.ends) + 2
        at = torch.isin(teacher.queries.cpu(), layout.index[0, queries])
        paid, segment = teacher.paid[layer][:, :, at], layout.segment[0].to(seen.device)
        raw_segment = segment[raw_rows(layout, torch.arange(len(lesson.ids))).to(seen.device)]
        ours = losses.segment_mass(seen[:, :, :later], segment, count)
        theirs = losses.segment_mass(paid, raw_segment, count)
        if config.attention_weight:
            found["attention"] = losses.attention_mass(ours, theirs)
        if config.output_weight:
            found["output"] = losses.attention_output(read[:, :, :later], teacher.read[layer][:, :, at])
        if config.ignored_weight:
            mine = segment[queries.to(seen.device)]
            number = torch.arange(count, device=seen.device)
            closed = (number[None] > 0) & (number[None] < mine[:, None])  # (Q, segments)
            found["ignored"] = losses.ignored(ours * closed, theirs * closed, config.ignored_share)
        if config.coverage_weight and later < len(part.watched):
            nexus_of = int(layout.segment[0, part.watched[later]])
            start, end = [lesson.encoded.prefix_length, *lesson.ends][nexus_of - 1 : nexus_of + 1]
            columns = raw_rows(layout, torch.arange(start, end)).to(seen.device)
            (target,) = self.targets(lesson, layer, start, [end])
            found["coverage"] = losses.coverage(seen[:, :, later:][..., columns], target)
        return {name: loss / layers for name, loss in found.items()}

    def part(
        self, lesson: Lesson | None, ids: Tensor, plan: Plan, after: Tensor, before: Sequence[Part]
    ) -> Part:
        """A part behind those `before`. Watched: later queries, then the Nexus tokens of one segment."""
        start = before[-1].rows.stop if before else 0
        watched = torch.empty(0, dtype=torch.long)
        if lesson is not None and self._watching:
            queries = lesson.teacher.queries.tolist()
            drawn = sorted(lesson.rng.sample(queries, min(self.config.observed_queries, len(queries))))
            watched = raw_rows(plan.layout, torch.tensor(drawn))
            nexus = plan.layout.nexus[0].nonzero()[:, 0]
            segments = plan.layout.segment[0, nexus]
            followed = [s for s in segments.unique().tolist() if lesson.ends[s - 1] <= queries[-1]]
            if followed:
                watched = torch.cat((watched, nexus[segments == lesson.rng.choice(followed)]))
        return Part(ids, plan, slice(start, start + plan.layout.index.shape[-1]), after, watched)

    def repetition(self, lesson: Lesson) -> tuple[Tensor, Plan, Tensor]:
        """Prefix, one segment, and the segment once more, which sees of the first one only what is kept."""
        encoded, rng = lesson.encoded, lesson.rng
        prefix = encoded.prefix_length
        number = rng.randrange(len(lesson.ends))
        start, end = [prefix, *lesson.ends][number], lesson.ends[number]
        at = [*range(prefix), *range(start, end), *range(start, end)]
        size = end - start
        short = replace(encoded, token_ids=[encoded.token_ids[i] for i in at], exchange_ends=[prefix + size])
        scores = [s[..., at] for s in self.scores(lesson.teacher)]
        plan = draw_plan(self.adapter, scores, short, [prefix + size], self.plans, rng)
        after = raw_rows(plan.layout, torch.arange(prefix + size, prefix + 2 * size))
        return lesson.ids[at], plan, after


def raw_rows(layout: Layout, positions: Tensor) -> Tensor:
    """The raw rows of ascending transcript positions of one dialogue."""
    raw = (~layout.nexus[0]).nonzero()[:, 0].cpu()
    return raw[positions]


def sum_of(values: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
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
