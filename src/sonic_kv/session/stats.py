"""Where a session stands, in numbers."""

from dataclasses import dataclass

import torch

from sonic_kv.cache.cache import SessionCache
from sonic_kv.model.model import SonicModel


@dataclass(frozen=True)
class SegmentStats:
    """A closed segment: its raw tokens, and entries kept (mean over layers and KV heads)."""

    tokens: int
    entries: float


@dataclass(frozen=True)
class SessionStats:
    """Where a session stands. `bytes` is allocated now; `full_bytes` is what full context would hold."""

    logical_tokens: int
    entries: int
    prefix: int
    memory: int
    open: int
    bytes: int
    full_bytes: int
    segments: tuple[SegmentStats, ...]


def stats_of(model: SonicModel, cache: SessionCache) -> SessionStats:
    """Entries, bytes and segments as they are now."""
    lengths = cache.lengths
    ends = [*lengths.segment_starts, lengths.closed][1:]
    kept = torch.zeros(len(lengths.segment_starts))
    if lengths.memory:
        starts = torch.tensor(lengths.segment_starts)
        for layer in cache.layers:
            positions = layer.positions[layer.scores > -torch.inf].cpu()
            owner = torch.bucketize(positions, starts, right=True) - 1
            kept += torch.bincount(owner, minlength=len(kept)) / len(cache.layers) / len(layer.counts)
    return SessionStats(
        logical_tokens=cache.logical_length,
        entries=cache.stored,
        prefix=lengths.prefix,
        memory=lengths.memory,
        open=cache.open_length,
        bytes=cache.nbytes,
        full_bytes=cache.logical_length * model.bytes_per_token,
        segments=tuple(
            SegmentStats(end - start, entries)
            for start, end, entries in zip(lengths.segment_starts, ends, kept.tolist(), strict=True)
        ),
    )
