"""Where a session stands, in numbers."""

from dataclasses import dataclass

from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.compressor import Compressor


@dataclass(frozen=True)
class SegmentStats:
    """A closed segment: its raw tokens, and entries kept (mean over layers and KV heads)."""

    tokens: int
    entries: float


@dataclass(frozen=True)
class SessionStats:
    """Where a session stands.

    Attributes:
        bytes: allocated now.
        full_bytes: what full context would hold.
        predicted_damage: what all that was dropped is predicted to cost, in nats a later token; None: the scores are
            not known in nats.
    """

    logical_tokens: int
    entries: int
    prefix: int
    memory: int
    open: int
    bytes: int
    full_bytes: int
    segments: tuple[SegmentStats, ...]
    predicted_damage: float | None = None


def stats_of(compressor: Compressor, cache: SessionCache) -> SessionStats:
    """Entries, bytes and segments as they are now."""
    lengths, shares = cache.lengths, cache.shares()
    ends = [*lengths.segment_starts, lengths.closed][1:]
    return SessionStats(
        logical_tokens=cache.logical_length,
        entries=cache.stored,
        prefix=lengths.prefix,
        memory=lengths.memory,
        open=cache.open_length,
        bytes=cache.nbytes,
        full_bytes=compressor.model.full_bytes(cache.logical_length),
        segments=tuple(
            SegmentStats(end - start, float(shares[start:end].sum()))
            for start, end in zip(lengths.segment_starts, ends, strict=True)
        ),
        predicted_damage=compressor.predicted_damage(cache),
    )
