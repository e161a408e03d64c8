"""Where a session stands, in numbers."""

from dataclasses import dataclass

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
    lengths, shares = cache.lengths, cache.shares()
    ends = [*lengths.segment_starts, lengths.closed][1:]
    return SessionStats(
        logical_tokens=cache.logical_length,
        entries=cache.stored,
        prefix=lengths.prefix,
        memory=lengths.memory,
        open=cache.open_length,
        bytes=cache.nbytes,
        full_bytes=cache.logical_length * model.bytes_per_token,
        segments=tuple(
            SegmentStats(end - start, float(shares[start:end].sum()))
            for start, end in zip(lengths.segment_starts, ends, strict=True)
        ),
    )
