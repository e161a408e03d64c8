"""Entries in eight or four bits: pure functions.

A key or value vector is divided by its largest magnitude and rounded to 2^bits − 1 symmetric levels. Keys
are first divided by a factor per channel: some channels of keys are much larger than the others in every
token, values have no such channels (as in KIVI, arXiv:2402.02750). A factor is a power of two, and the
largest magnitude is one of the levels, so that what has been rounded once is rounded to itself: memory can be
packed and unpacked at every turn without drifting.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PEAK_BYTES = 2  # of a vector's largest magnitude, bfloat16


@dataclass(frozen=True)
class Packed:
    """Quantised vectors (..., S, D)."""

    codes: Tensor  # (..., S, D * bits / 8) uint8
    peak: Tensor  # the largest magnitude of each vector. (..., S, 1) bfloat16
    bits: int


def channel_factors(keys: Tensor) -> Tensor:
    """A power of two per channel, near its largest magnitude.

    The two channels that a rotary embedding turns into each other share one: it stays right wherever the
    keys are moved.

    Args:
        keys: (..., S, D), S at least 1.

    Returns:
        (..., 1, D), of the keys' dtype
    """
    largest = keys.abs().amax(-2, keepdim=True).float()
    half = largest.shape[-1] // 2
    pair = torch.maximum(largest[..., :half], largest[..., half:])
    return torch.exp2(torch.cat((pair, pair), -1).clamp_min(1e-6).log2().round()).to(keys.dtype)


def pack(vectors: Tensor, bits: int) -> Packed:
    """Round vectors (..., S, D) to `bits` (8 or 4; then D is even)."""
    vectors = vectors.float()
    peak = vectors.abs().amax(-1, keepdim=True).to(torch.bfloat16)
    top = (1 << (bits - 1)) - 1
    levels = (vectors / peak.float().clamp_min(1e-30) * top).round().clamp(-top, top) + top
    codes = levels.to(torch.uint8)
    if bits == 4:
        half = codes.shape[-1] // 2
        codes = codes[..., :half] | codes[..., half:] << 4
    return Packed(codes, peak, bits)


def unpack(packed: Packed, dtype: torch.dtype) -> Tensor:
    """The rounded vectors. (..., S, D)"""
    codes, top = packed.codes, (1 << (packed.bits - 1)) - 1
    if packed.bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), dim=-1)
    return ((codes.float() - top) / top * packed.peak.float()).to(dtype)


def vector_bytes(width: int, bits: int) -> int:
    """Bytes of one packed vector of `width`."""
    return width * bits // 8 + PEAK_BYTES
