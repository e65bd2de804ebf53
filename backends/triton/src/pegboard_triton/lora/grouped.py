"""Many rows: those of one slot are computed together, in tiles of matrix units, wherever in the batch they are.

`order` and `offsets` say which rows are of which slot (`pegboard_triton.moe.order`), and are read on the device: a block of rows without
any ends at once. Rows without a slot are in no part of the order, and rows of an empty slot add nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pegboard_triton.kernel import kernel
from pegboard_triton.moe.grouped import _block_sorted


@triton.jit
def _rows_of(order, first, stop, BLOCK_M: tl.constexpr):
    """Return (row [BLOCK_M], which of them are there); a row that is not is row 0."""
    at = first + tl.arange(0, BLOCK_M)
    there = at < stop
    return tl.load(order + at, mask=there, other=0).to(tl.int64), there


@kernel
def shrink_grouped(
    x,
    order,
    offsets,
    table,
    inner,
    rows,
    x_stride,
    INPUTS: tl.constexpr,
    SLOTS: tl.constexpr,
    POWER: tl.constexpr,
    RECORD: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """inner[s, t, r] = the part s of x[t] down[r], PART inputs of it. Programs: blocks of rows, tiles of ranks, parts.

    inner: float32 [parts, T, WIDTH]. POWER: SLOTS rounded up to a power of two.
    """
    slot, _, first_row, stop = _block_sorted(offsets, tl.program_id(0), SLOTS, POWER, BLOCK_M)
    if first_row >= stop:
        return
    record = table + slot.to(tl.int64) * RECORD
    ranks = tl.load(record + 1).to(tl.int32)
    if tl.program_id(1) * BLOCK_R >= ranks:
        return
    row, there = _rows_of(order, first_row, stop, BLOCK_M)
    down = tl.load(record).to(tl.pointer_type(x.dtype.element_ty))
    if INPUTS % 16 == 0:
        down = tl.multiple_of(down, 16)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    inputs = x + row[:, None] * x_stride + k[None, :]
    at = tl.minimum(r, ranks - 1)[None, :] * INPUTS + k[:, None]
    begin = tl.program_id(2) * PART
    total = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for start in range(begin, tl.minimum(begin + PART, INPUTS), BLOCK_K):
        if INPUTS % BLOCK_K == 0:
            a = tl.load(inputs + start, mask=there[:, None], other=0.0)
            b = tl.load(down + at + start)
        else:
            inside = k < INPUTS - start
            a = tl.load(inputs + start, mask=there[:, None] & inside[None, :], other=0.0)
            b = tl.load(down + at + start, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    part = tl.program_id(2).to(tl.int64) * rows
    tl.store(inner + (part + row)[:, None] * WIDTH + r[None, :], total, mask=there[:, None] & (r < ranks)[None, :])


@kernel
def expand_grouped(
    inner,
    order,
    offsets,
    table,
    tiles,
    out,
    rows,
    out_stride,
    SLOTS: tl.constexpr,
    POWER: tl.constexpr,
    RECORD: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out[t] += (the sum of inner[., t], in the order of its parts) up, in place, for the columns of a tile.

    Programs: blocks of rows, tiles. tiles, ALIGNED: as of `few.expand_few`.
    """
    slot, _, first_row, stop = _block_sorted(offsets, tl.program_id(0), SLOTS, POWER, BLOCK_M)
    if first_row >= stop:
        return
    tile = tiles + tl.program_id(1) * 4
    member = tl.load(tile)
    column = tl.load(tile + 1)
    target = tl.load(tile + 2)
    width = tl.load(tile + 3)
    record = table + slot.to(tl.int64) * RECORD + 2 + member * 3
    ranks = tl.load(record + 2).to(tl.int32)
    if ranks == 0:
        return
    row, there = _rows_of(order, first_row, stop, BLOCK_M)
    up = tl.load(record).to(tl.pointer_type(out.dtype.element_ty))
    if ALIGNED:
        up = tl.multiple_of(up, 16)
        column = tl.multiple_of(column, 16)
        target = tl.multiple_of(target, 16)
        width = tl.multiple_of(width, 16)
    first = tl.load(record + 1).to(tl.int32)
    n = tl.arange(0, BLOCK_N)
    inside = column + n < width
    r = tl.arange(0, BLOCK_R)
    factors = inner + row[:, None] * WIDTH + (first + r)[None, :]
    at = r[:, None] * width + (column + n)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, ranks, BLOCK_R):
        real = r < ranks - start
        wanted = there[:, None] & real[None, :]
        a = tl.load(factors + start, mask=wanted, other=0.0)
        for part in tl.static_range(1, PARTS):
            a += tl.load(factors + start + part * rows * WIDTH, mask=wanted, other=0.0)
        b = tl.load(up + at + start * width, mask=real[:, None] & inside[None, :], other=0.0)
        total = tl.dot(a.to(b.dtype), b, total, input_precision="ieee")
    results = out + row[:, None] * out_stride + (target + n)[None, :]
    mask = there[:, None] & inside[None, :]
    before = tl.load(results, mask=mask, other=0.0).to(tl.float32)
    tl.store(results, (before + total).to(out.dtype.element_ty), mask=mask)
