"""Budgets, segments and exceptions of a compressed run, drawn at random, and what a session would then keep."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonic_kv.adapter import Adapter
from sonic_kv.budget import allocate
from sonic_kv.config import PlanConfig
from sonic_kv.layout import Layout, interleave, lifetimes
from sonic_kv.segments import Encoded, segment_ends
from sonic_kv.selection import Selection, candidates, in_elastic_order


@dataclass(frozen=True)
class Entries:
    """Entries of one layer as the selection sees them."""

    positions: Tensor  # (1, G, N)
    scores: Tensor  # (1, G, N)


@dataclass(frozen=True)
class Plan:
    """Segments, Nexus tokens and lifetimes of one compressed run. On the CPU."""

    layout: Layout
    lifetime: list[Tensor]  # per layer (1, G, T)
    ends: list[int]


def draw_ends(encoded: Encoded, config: PlanConfig, rng: random.Random) -> list[int]:
    """Where segments are closed, by sizes drawn for the dialogue; always at least once."""
    low, high = rng.choice(config.group_tokens), rng.choice(config.split_tokens)
    ends = [end for end in segment_ends(encoded, low, high) if end < len(encoded.token_ids) - 1]
    return ends or [encoded.exchange_ends[0]]  # too short for these sizes


@torch.no_grad()
def draw_plan(
    adapter: Adapter,
    scores: Sequence[Tensor],
    encoded: Encoded,
    ends: list[int],
    config: PlanConfig,
    rng: random.Random,
) -> Plan:
    """Close the segments as a session would, under budgets drawn at random.

    The ratio is drawn for the dialogue, may rise for good at one closing, and is jittered at every
    closing. Entries are then shared as drawn: each head chooses over the whole history, or counts per
    segment by importance, or at random; their sum is exact. Some segments stay raw, and scores may
    get Gumbel noise, which makes any subset likely.

    Args:
        scores: per layer, of every token of the transcript, recency apart. (1, G, T)
    """
    prefix, length = encoded.prefix_length, len(encoded.token_ids)
    learned = adapter.config.form == "learned"
    shared = rng.random()
    at_random = shared < config.random_share
    by_segment = learned or config.random_share <= shared < config.random_share + config.segment_share
    selection = Selection(adapter.scorer.recency, by_segment)
    ratio = rng.uniform(config.ratio_min, config.ratio_max)
    lowered = rng.randrange(len(ends)) if rng.random() < config.shrink_share else len(ends)
    scores = _noisy([s.float() for s in scores], rng.choice(config.noise), rng)
    heads, device = scores[0].shape[1], scores[0].device
    memory = [Entries(torch.empty(1, heads, 0, dtype=torch.long, device=device), s[..., :0]) for s in scores]
    starts: list[int] = []
    nexus: list[Tensor] = []
    kept: list[list[Tensor]] = [[] for _ in scores]
    for number, (start, end) in enumerate(zip([prefix, *ends], ends, strict=False)):
        starts.append(start)
        if number == lowered:
            ratio = rng.uniform(ratio, config.ratio_max)
        here = min(max(ratio + rng.uniform(-1, 1) * config.ratio_jitter, 0.0), config.ratio_max)
        fresh = torch.arange(start, end, device=device).expand(1, heads, -1)
        old = memory[0].positions.shape[-1]
        entries = [
            Entries(torch.cat((m.positions, fresh), -1), torch.cat((m.scores, s[..., start:end]), -1))
            for m, s in zip(memory, scores, strict=True)
        ]
        total = min(max(round((1 - here) * (end - prefix)), len(starts)), old + end - start)
        everything = total == old + end - start  # a session then keeps the segment raw
        if learned and not everything:
            entries = [Entries(e.positions, in_elastic_order(e.scores, old)) for e in entries]
        if at_random:
            counts = _random_counts(entries[0], starts, total, rng)
        else:
            counts = selection.counts(entries, starts, end, total)
        selected = selection.keep(entries, starts, end, total, counts)
        if learned:
            chosen = torch.arange(end - start - counts[-1], end - start)
        else:
            chosen = candidates(entries, selected, old, rng.choice(config.candidates)).cpu()
        raw = everything or (not learned and rng.random() < config.raw_share)
        nexus.append(start + chosen[:0] if raw else start + chosen)
        memory = [
            Entries(e.positions.gather(-1, index[None]), e.scores.gather(-1, index[None]))
            for e, index in zip(entries, selected, strict=True)
        ]
        for layer, entry in enumerate(memory):
            kept[layer].append(entry.positions[0].cpu())
    whole = learned or adapter.config.scope == "segment"
    layout = interleave(length, prefix, ends, nexus, whole_segment=whole)
    return Plan(layout, [lifetimes(layout, entries) for entries in kept], ends)


def _noisy(scores: list[Tensor], scale: float, rng: random.Random) -> list[Tensor]:
    """Scores with Gumbel noise, the same in every layer."""
    if not scale:
        return scores
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    uniform = torch.rand(scores[0].shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(scores[0].device)
    return [s - scale * (-uniform.log()).log() for s in scores]


def _random_counts(entry: Entries, starts: list[int], total: int, rng: random.Random) -> list[int]:
    """`total` entries shared among the segments by random weights (exponential: any split is likely)."""
    edges = torch.tensor(starts, device=entry.positions.device)
    owner = torch.bucketize(entry.positions[0, 0], edges, right=True) - 1
    held = torch.bincount(owner, minlength=len(starts)).tolist()
    return allocate([rng.expovariate(1.0) * n for n in held], held, total)
