"""Triton kernels of a decode step: all KV heads of all dialogues in one call, wherever their entries stand.

A head is an address and a size, so heads may have any lengths and dialogues storage of their own. (Addresses are
counted in units of 16 bytes, by which the compiler knows how they are aligned.) Each head is divided among several
programs, as many for every head (Flash-Decoding), which read it from memory once for all its query heads. Addresses and
sizes are tensors: a CUDA graph of these calls serves every length.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sonic_kv.cache.growing import ALIGNED

PROGRAMS, MOST_PARTS = 8192, 64  # that read at once, if there is so much to read; programs to a head
BLOCK_BYTES, MOST_ENTRIES = 1 << 14, 128  # keys that a program has at a time: so many bytes, not more entries
LEAST = 16  # rows and columns that matrix units multiply


def parts_of(heads: int) -> int:
    """Into how many parts each of so many heads is divided."""
    return min(MOST_PARTS, 1 << (-(-PROGRAMS // heads) - 1).bit_length())


def append(
    anchor: Tensor, keys: Tensor, values: Tensor, key_at: Tensor, value_at: Tensor, sizes: Tensor
) -> None:
    """Store one new entry of every head behind its entries.

    Args:
        anchor: where addresses are counted from.
        keys, values: the new entries. (N, D)
        key_at, value_at: where the heads' entries begin, in units of 16 bytes from the anchor. (N,) int64
        sizes: how many entries they have; below 0: there is no such head. (N,) int32
    """
    heads, width = keys.shape
    _append[(heads,)](
        anchor, keys, values, key_at, value_at, sizes,
        WIDTH=width, COLUMNS=triton.next_power_of_2(width), UNIT=ALIGNED // anchor.element_size(),
    )  # fmt: skip


def attend(
    anchor: Tensor,
    query: Tensor,
    key_at: Tensor,
    value_at: Tensor,
    sizes: Tensor,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    parts: int | None = None,
    block: int | None = None,
    warps: int = 4,
    stages: int = 3,
) -> Tensor:
    """Attention over the entries of every head and the one behind them, which is new.

    Args:
        query: of the query heads of each KV head. (N, R, D)
        window: how many of the newest entries are seen; None: all.
        parts, block, warps, stages: how the work is divided.

    Returns:
        (N, R, D); what belongs to no head is 0
    """
    heads, rows, width = query.shape
    parts = parts_of(heads) if parts is None else parts
    found = query.new_empty(heads, parts, rows, width, dtype=torch.float32)
    weight = query.new_empty(heads, parts, rows, dtype=torch.float32)
    output = torch.empty_like(query)
    columns = max(LEAST, triton.next_power_of_2(width))
    if block is None:
        block = max(LEAST, min(MOST_ENTRIES, BLOCK_BYTES // (columns * query.element_size())))
    _attend[(heads, parts)](
        anchor, query, key_at, value_at, sizes, found, weight, scale, softcap or 0.0,
        PARTS=parts, ROWS=rows, WIDTH=width, COLUMNS=columns, PADDED=max(LEAST, triton.next_power_of_2(rows)),
        BLOCK=block, UNIT=ALIGNED // anchor.element_size(), WINDOW=window or 0, CAPPED=softcap is not None,
        EXACT=query.dtype == torch.float32, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    _add_up[(heads, rows)](
        found, weight, output, PARTS=parts, ROWS=rows, WIDTH=width, COLUMNS=columns, num_warps=4
    )
    return output


@triton.jit
def _append(
    anchor, keys, values, key_at, value_at, sizes,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    size = tl.load(sizes + head).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    wanted = (columns < WIDTH) & (size >= 0)
    own = head * WIDTH + columns
    row = size * WIDTH + columns
    tl.store(anchor + tl.load(key_at + head) * UNIT + row, tl.load(keys + own, mask=wanted), mask=wanted)
    tl.store(anchor + tl.load(value_at + head) * UNIT + row, tl.load(values + own, mask=wanted), mask=wanted)


@triton.jit
def _attend(
    anchor, query, key_at, value_at, sizes, found, weight,
    scale, softcap,
    PARTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, UNIT: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One part of one head: its share of the sum, and the logarithm of what it is to be weighted by."""
    head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    end = tl.load(sizes + head) + 1
    first = 0
    if WINDOW > 0:
        first = tl.maximum(end - WINDOW, 0)
    share = tl.cdiv(tl.cdiv(end - first, BLOCK), PARTS) * BLOCK
    start = first + part * share
    stop = tl.minimum(start + share, end)

    rows, columns = tl.arange(0, PADDED), tl.arange(0, COLUMNS)
    out = (head * PARTS + part) * ROWS + rows
    if start >= stop:
        tl.store(weight + out, tl.full((PADDED,), float("-inf"), tl.float32), mask=rows < ROWS)
        return
    wide = columns < WIDTH
    shown = (rows < ROWS)[:, None] & wide[None, :]
    asked = tl.load(query + (head * ROWS + rows)[:, None] * WIDTH + columns[None, :], mask=shown, other=0.0)
    keys = anchor + tl.load(key_at + head) * UNIT
    values = anchor + tl.load(value_at + head) * UNIT
    most = tl.full((PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    summed = tl.zeros((PADDED, COLUMNS), tl.float32)
    for at in range(start, stop, BLOCK):
        entries = at + tl.arange(0, BLOCK)
        here = entries < stop
        place = entries.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        held = here[:, None] & wide[None, :]
        key = tl.load(keys + place, mask=held, other=0.0)
        if EXACT:
            logits = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        else:
            logits = tl.dot(asked, tl.trans(key)) * scale
        if CAPPED:  # tanh(x) = 1 - 2 / (1 + exp(2 x))
            logits = softcap * (1 - 2 / (1 + tl.exp(2 * logits / softcap)))
        logits = tl.where(here[None, :], logits, float("-inf"))
        largest = tl.maximum(most, tl.max(logits, 1))
        shares = tl.exp(logits - largest[:, None])
        kept = tl.exp(most - largest)
        value = tl.load(values + place, mask=held, other=0.0)
        summed = summed * kept[:, None]
        if EXACT:
            summed += tl.dot(shares, value, input_precision="ieee")
        else:
            summed += tl.dot(shares.to(value.dtype), value)
        total = total * kept + tl.sum(shares, 1)
        most = largest
    tl.store(found + out[:, None] * WIDTH + columns[None, :], summed / total[:, None], mask=shown)
    tl.store(weight + out, most + tl.log(total), mask=rows < ROWS)


@triton.jit
def _add_up(
    found, weight, output,
    PARTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The parts of one query head, each by its weight."""
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts, columns = tl.arange(0, PARTS), tl.arange(0, COLUMNS)
    at = (head * PARTS + parts) * ROWS + row
    logs = tl.load(weight + at)
    there = logs > float("-inf")
    largest = tl.max(logs, 0)
    shares = tl.where(there, tl.exp(logs - largest), 0.0)
    wide = columns < WIDTH
    rows = tl.load(
        found + at[:, None] * WIDTH + columns[None, :], mask=there[:, None] & wide[None, :], other=0.0
    )
    total = tl.sum(shares, 0)
    summed = tl.sum(rows * shares[:, None], 0) / tl.where(total > 0, total, 1.0)
    place = output + (head * ROWS + row) * WIDTH + columns
    tl.store(place, summed.to(output.dtype.element_ty), mask=wide)
