"""The full-context base on whole dialogues: what it says, and what it would say without history."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.model.forward import forward
from sonic_kv.model.layout import Layout, interleave, pack
from sonic_kv.model.model import SonicModel
from sonic_kv.model.probe import Probe
from sonic_kv.model.reader import OnePass


@dataclass(frozen=True)
class Teacher:
    """What the base says of one dialogue of T tokens, and keeps of it."""

    logits: Tensor  # (T, V)
    keys: list[Tensor]  # per layer, unrotated (1, G, T, D)
    values: list[Tensor]  # per layer (1, G, T, D)


@torch.no_grad()
def run_teacher(model: SonicModel, dialogues: Sequence[Tensor], probe: Probe | None = None) -> list[Teacher]:
    """The full-context forward over packed dialogues.

    Args:
        dialogues: token ids. Each (T,)
        probe: observes its rows of the packed forward.
    """
    cache = SessionCache(model.num_layers)
    layout, lifetime = side_by_side(model, dialogues, [0] * len(dialogues), [[] for _ in dialogues])
    reader = OnePass(layout, [lifetime] * model.num_layers, probe=probe)
    transcripts = torch.cat(list(dialogues))[None]
    logits = forward(model.twin, transcripts, layout.position, reader, cache=cache)
    keys = [model.rope.rotate(n, layer.keys, -layout.position[0]) for n, layer in enumerate(cache.layers)]
    found = []
    for ids, start in zip(dialogues, offsets([len(ids) for ids in dialogues]), strict=True):
        here = slice(start, start + len(ids))
        values = [layer.values[:, :, here] for layer in cache.layers]
        found.append(Teacher(logits[0, here], [k[:, :, here] for k in keys], values))
    return found


@torch.no_grad()
def run_alone(
    model: SonicModel, dialogues: Sequence[Tensor], prefixes: Sequence[int], ends: Sequence[list[int]]
) -> list[Tensor]:
    """The base's logits when every segment sees the prefix and itself alone. Each (T, V)"""
    layout, lifetime = side_by_side(model, dialogues, prefixes, ends)
    ids = torch.cat(list(dialogues))[None]
    logits = model.one_pass(ids, layout, [lifetime] * model.num_layers)[0]
    return list(logits.split([len(d) for d in dialogues]))


def side_by_side(
    model: SonicModel, dialogues: Sequence[Tensor], prefixes: Sequence[int], ends: Sequence[list[int]]
) -> tuple[Layout, Tensor]:
    """Packed dialogues without Nexus tokens or memory, and their lifetimes (1, 1, T)."""
    nothing = torch.empty(0, dtype=torch.long)
    layouts = [
        interleave(len(ids), prefix, stops, [nothing] * len(stops))
        for ids, prefix, stops in zip(dialogues, prefixes, ends, strict=True)
    ]
    packed, lifetime = pack(layouts, [[layout.default_lifetime()[:, None]] for layout in layouts])
    return packed.to(model.device), lifetime[0].to(model.device)


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each of several parts starts when they follow one another."""
    return [sum(lengths[:i]) for i in range(len(lengths))]
