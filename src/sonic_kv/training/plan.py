"""Budgets, segments and exceptions of a compressed run, drawn at random, and what a session would then keep."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonic_kv.cache.cache import Lengths
from sonic_kv.compress.closing import allowed, close
from sonic_kv.compress.options import Allocation, Budget
from sonic_kv.compress.selection import candidates, in_elastic_order
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.encoded import Encoded, segment_ends
from sonic_kv.model.layout import Layout, interleave, lifetimes
from sonic_kv.training.options import PlanConfig


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

    The ratio is drawn for the dialogue and jittered at every closing. Entries are then shared as drawn: over all
    layers and heads, or each head chooses over the whole history, or counts per segment by importance; their sum is
    exact. Some segments stay raw, and scores may get Gumbel noise, which makes any subset likely.

    Args:
        scores: per layer, of every token of the transcript, recency apart. (1, G, T)
    """
    prefix, length = encoded.prefix_length, len(encoded.token_ids)
    learned = adapter.config.form == "learned"
    allocation = _allocation(learned, rng.random(), config)
    ratio = rng.uniform(config.ratio_min, config.ratio_max)
    scores = _noisy([s.float() for s in scores], rng.choice(config.noise), rng)
    heads, device = scores[0].shape[1], scores[0].device
    memory = [s[0, :, prefix:prefix] for s in scores]  # of all closed tokens; -inf: dropped
    lengths = Lengths(prefix=prefix, closed=prefix)
    nexus: list[Tensor] = []
    alive: list[list[list[Tensor]]] = [[] for _ in scores]
    for start, end in zip([prefix, *ends], ends, strict=False):
        here = min(max(ratio + rng.uniform(-1, 1) * config.ratio_jitter, 0.0), config.ratio_max)
        budget, lengths = Budget(compression_ratio=here), lengths.closing(end - start)
        memory = [torch.cat((m, s[0, :, start:end]), -1) for m, s in zip(memory, scores, strict=True)]
        if learned and allowed(lengths, budget) < lengths.memory:
            memory = [in_elastic_order(m, start - prefix) for m in memory]
        closed = torch.arange(prefix, end, device=device).expand(heads, -1)
        ranks = [m + adapter.scorer.recency(layer, end - closed) for layer, m in enumerate(memory)]
        kept = close(ranks, [closed] * len(ranks), lengths, budget, allocation)
        lengths = kept.lengths
        if learned:
            size = 0 if kept.whole else kept.counts[-1]
            chosen = torch.arange(end - start - size, end - start)
        else:
            fresh = [mask[:, start - prefix :] for mask in kept.masks]
            shown = [s[0, :, start:end] for s in scores]
            chosen = candidates(fresh, shown, rng.choice(config.candidates)).cpu()
        # a session keeps a segment raw of which nothing is dropped
        raw = kept.whole or (not learned and rng.random() < config.raw_share)
        nexus.append(start + chosen[:0] if raw else start + chosen)
        memory = [m.where(mask, -torch.inf) for m, mask in zip(memory, kept.masks, strict=True)]
        for layer, mask in zip(alive, kept.masks, strict=True):
            layer.append([prefix + head.nonzero()[:, 0] for head in mask.cpu()])
    layout = interleave(length, prefix, ends, nexus, whole_segment=learned)
    return Plan(layout, [lifetimes(layout, layer) for layer in alive], ends)


def _allocation(learned: bool, shared: float, config: PlanConfig) -> Allocation:
    """How a dialogue's entries are shared, by a number drawn from [0, 1)."""
    if learned or shared < config.segment_share:
        return "segment"
    return "shared" if shared >= 1.0 - config.shared_share else "per_head"


def _noisy(scores: list[Tensor], scale: float, rng: random.Random) -> list[Tensor]:
    """Scores with Gumbel noise, the same in every layer."""
    if not scale:
        return scores
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    uniform = torch.rand(scores[0].shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(scores[0].device)
    return [s - scale * (-uniform.log()).log() for s in scores]
