"""The published form: attention-guided importance, distillation, attention regularisation, reconstruction."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import losses
import torch
from losses import LossConfig
from torch import Tensor

from sonic_kv.model.adapter import Adapter
from sonic_kv.model.encoded import Encoded
from sonic_kv.model.model import SonicModel
from sonic_kv.model.probe import Probe
from sonic_kv.training.losses import distillation
from sonic_kv.training.objectives import Objective, Run, compressed, raw_rows, sum_of, token_scores
from sonic_kv.training.options import PlanConfig
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
    queries: Tensor  # transcript positions of the observed queries (Q,)
    paid: list[Tensor]  # per layer, their attention in the full-context base (G, R, Q, T)
    read: list[Tensor]  # per layer, what they read by it (G, R, Q, D)
    need: Tensor | None  # how much every row's prediction needs the history (T,)
    rng: random.Random

    @property
    def first(self) -> int:
        """Transcript position of the first token that has a compressed history."""
        return self.ends[0]


@dataclass(frozen=True)
class Part:
    """A dialogue's rows in the packed student forward."""

    token_ids: Tensor
    plan: Plan
    rows: slice
    after: Tensor  # rows, from the part's start, whose logits are needed
    watched: Tensor  # rows, from the part's start, that the probe observes


def published(
    loss: LossConfig,
) -> Callable[[SonicModel, Adapter, PlanConfig, Run], Objective]:
    """What a trainer makes its objective with, for these weights."""
    return lambda model, adapter, plans, run: PublishedObjective(model, adapter, plans, run, loss)


class PublishedObjective:
    """The losses of `config` on budgets drawn as `plans` says."""

    scorer_rests = False

    def __init__(
        self, model: SonicModel, adapter: Adapter, plans: PlanConfig, run: Run, config: LossConfig
    ) -> None:
        self.model, self.adapter, self.plans, self.how, self.config = model, adapter, plans, run, config
        weighted = ("distillation", "attention", "output", "ignored", "coverage", "reconstruction")
        weighs = adapter.reencodes and any(getattr(config, f"{name}_weight") for name in weighted)
        self.then = "re-encoding" if weighs else ""
        self.options: dict[str, Any] = {
            "objective": "published",
            "plan": asdict(plans),
            "loss": asdict(config),
        }
        self._watching = bool(
            config.attention_weight or config.output_weight or config.ignored_weight or config.coverage_weight
        )

    def backward(
        self, lessons: Sequence[Lesson], scale: float, *, scorer: bool = True, student: bool = True
    ) -> dict[str, float]:
        found: list[Named] = []
        with self._autocast():
            if scorer and self.config.importance_weight:
                found.append({"importance": sum_of([self.importance(lesson) for lesson in lessons])})
                (scale * self.config.importance_weight * found[-1]["importance"]).backward()
            if student and self.then:
                with self.compressed(lessons) as named:
                    found.append(named)
                    total = sum_of(
                        [getattr(self.config, f"{name}_weight") * loss for name, loss in named.items()]
                    )
                    if total.requires_grad:
                        (scale * total).backward()
        return {name: loss.item() for named in found for name, loss in named.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.how.bf16)

    def read(
        self, batch: Sequence[Encoded], rngs: Sequence[random.Random], *, scorer: bool = True
    ) -> list[Lesson]:
        with self._autocast():
            return self._read(batch, rngs)

    def _read(self, batch: Sequence[Encoded], rngs: Sequence[random.Random]) -> list[Lesson]:
        """Run the base over the dialogues, whole and, if need counts, segment by segment."""
        model, config = self.model, self.config
        ids = [torch.tensor(encoded.token_ids, device=model.device) for encoded in batch]
        ends = [draw_ends(encoded, self.plans, rng) for encoded, rng in zip(batch, rngs, strict=True)]
        queries = []
        for tokens, stops, rng in zip(ids, ends, rngs, strict=True):
            later = range(stops[0], len(tokens))
            drawn = rng.sample(later, min(config.importance_queries, len(later)))
            queries.append(torch.tensor(sorted(drawn), device=model.device))
        starts = offsets([len(tokens) for tokens in ids])
        probe = Probe(rows=torch.cat([q + start for q, start in zip(queries, starts, strict=True)])[None])
        teachers = run_teacher(model, ids, probe)
        needs: list[Tensor | None] = [None] * len(ids)
        if config.importance_need:
            alone = run_alone(model, ids, [encoded.prefix_length for encoded in batch], ends)
            needs = [losses.need(t.logits, own) for t, own in zip(teachers, alone, strict=True)]
        found, first = [], 0
        for n, start in enumerate(starts):
            rows, here = slice(first, first + len(queries[n])), slice(start, start + len(ids[n]))
            first = rows.stop
            paid = [probe.seen[layer][0, :, :, rows, here] for layer in range(model.num_layers)]
            read = [probe.outputs[layer][0, :, :, rows] for layer in range(model.num_layers)]
            found.append(
                Lesson(batch[n], ids[n], ends[n], teachers[n], queries[n], paid, read, needs[n], rngs[n])
            )
        return found

    def targets(self, lesson: Lesson, layer: int, start: int, ends: Sequence[int]) -> list[Tensor]:
        """What queries after each end attend to in [start, end). Each (G, end - start)"""
        config, weights = self.config, None
        if lesson.need is not None:
            weights = losses.query_weights(lesson.need[lesson.queries], config.importance_need)
        return losses.attention_targets(
            lesson.paid[layer], lesson.queries, ends, start, config.importance_norm, weights
        )

    def importance(self, lesson: Lesson) -> Tensor:
        """`losses.importance`, mean over all boundaries that queries follow."""
        found, start, scorer = [], lesson.encoded.prefix_length, self.adapter.scorer
        keys, values = lesson.teacher.keys, lesson.teacher.values
        raw = [scorer(n, k, v)[0] for n, (k, v) in enumerate(zip(keys, values, strict=True))]  # (G, T)
        last = int(lesson.queries[-1])
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
            scores = token_scores(self.adapter, lesson.teacher)
            plan = draw_plan(self.adapter, scores, lesson.encoded, lesson.ends, self.plans, lesson.rng)
            after = raw_rows(plan.layout, torch.arange(lesson.first, len(lesson.ids)))
            parts.append(self.part(lesson, lesson.ids, plan, after, parts))
        if config.reconstruction_weight:
            for lesson in lessons:
                ids, plan, after = self.repetition(lesson)
                parts.append(self.part(None, ids, plan, after, parts))
        layers = lessons[0].rng.sample(range(model.num_layers), min(config.observed_layers, model.num_layers))
        probe = None
        if self._watching:
            probe = Probe(torch.cat([p.rows.start + p.watched for p in parts])[None].to(model.device), layers)
        ids, plans, rows = [p.token_ids for p in parts], [p.plan for p in parts], [p.after for p in parts]
        with compressed(model, self.adapter, ids, plans, rows, self.how, probe=probe) as logits:
            named = self.named(lessons, parts, logits, probe, layers)
            names = {name: None for losses_of in named for name in losses_of}
            yield {name: sum_of([found[name] for found in named if name in found]) for name in names}

    def named(
        self,
        lessons: Sequence[Lesson],
        parts: Sequence[Part],
        logits: Sequence[Tensor],
        probe: Probe | None,
        layers: Sequence[int],
    ) -> list[Named]:
        """The losses of every part."""
        found: list[Named] = []
        watched = offsets([len(p.watched) for p in parts])
        for lesson, part, student, first in zip(lessons, parts, logits, watched, strict=False):
            full = lesson.teacher.logits[lesson.first :]
            found.append({"distillation": distillation(student, full, self.config.forward_kl)})
            rows = slice(first, first + len(part.watched))
            for layer in layers if probe is not None else ():
                seen = probe.seen[layer][0, :, :, rows, part.rows]
                read = probe.outputs[layer][0, :, :, rows]
                found.append(self.attention_losses(lesson, part, layer, seen, read, len(layers)))
        for part, student in zip(parts[len(lessons) :], logits[len(lessons) :], strict=True):
            repeated = part.token_ids[-len(part.after) :]
            found.append({"reconstruction": losses.cross_entropy(student[:-1], repeated[1:])})
        return found

    def attention_losses(
        self, lesson: Lesson, part: Part, layer: int, seen: Tensor, read: Tensor, layers: int
    ) -> Named:
        """The losses on what is looked at, in one of `layers` layers.

        Args:
            seen: attention of the part's watched rows. (G, R, Q, T)
            read: their attention outputs. (G, R, Q, D)
        """
        config, layout, found = self.config, part.plan.layout, Named()
        queries = part.watched[~layout.nexus[0, part.watched]]  # the other watched rows are Nexus tokens
        later, count = len(queries), len(lesson.ends) + 2
        at = torch.isin(lesson.queries.cpu(), layout.index[0, queries])
        paid, segment = lesson.paid[layer][:, :, at], layout.segment[0].to(seen.device)
        raw_segment = segment[raw_rows(layout, torch.arange(len(lesson.ids))).to(seen.device)]
        ours = losses.segment_mass(seen[:, :, :later], segment, count)
        theirs = losses.segment_mass(paid, raw_segment, count)
        if config.attention_weight:
            found["attention"] = losses.attention_mass(ours, theirs)
        if config.output_weight:
            found["output"] = losses.attention_output(read[:, :, :later], lesson.read[layer][:, :, at])
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
            queries = lesson.queries.tolist()
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
        scores = [s[..., at] for s in token_scores(self.adapter, lesson.teacher)]
        plan = draw_plan(self.adapter, scores, short, [prefix + size], self.plans, rng)
        after = raw_rows(plan.layout, torch.arange(prefix + size, prefix + 2 * size))
        return lesson.ids[at], plan, after
