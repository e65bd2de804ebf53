"""Few rows, as in decoding: each row reads its own adapter's factors, without tiles of matrix units.

`table`: int64 [slots, RECORD], where the factors lie, as of `pegboard_lora.bank`. A row whose slot is none, or empty, adds nothing:
its programs end at once, so that the grid depends on sizes alone and a graph serves whatever the slots hold when it runs.
"""

from __future__ import annotations

import triton.language as tl

from pegboard_triton.kernel import kernel


@kernel
def shrink_few(
    x,
    slots,
    table,
    inner,
    x_stride,
    INPUTS: tl.constexpr,
    SLOTS: tl.constexpr,
    RECORD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """inner[t, r] = x[t] down[r] for the ranks r of row t's slot. Programs: rows, tiles of ranks. inner: float32 [T, WIDTH]."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if (slot < 0) | (slot >= SLOTS):
        return
    record = table + slot * RECORD
    ranks = tl.load(record + 1).to(tl.int32)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R >= ranks:
        return
    down = tl.load(record).to(tl.pointer_type(x.dtype.element_ty))
    k = tl.arange(0, BLOCK_K)
    at = tl.minimum(r, ranks - 1)[:, None] * INPUTS + k[None, :]
    if INPUTS % 16 == 0:
        down = tl.multiple_of(down, 16)
    inputs = x + row.to(tl.int64) * x_stride + k
    total = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for start in range(0, INPUTS, BLOCK_K):
        if INPUTS % BLOCK_K == 0:
            a = tl.load(inputs + start)
            b = tl.load(down + at + start)
        else:
            inside = k < INPUTS - start
            a = tl.load(inputs + start, mask=inside, other=0.0)
            b = tl.load(down + at + start, mask=inside[None, :], other=0.0)
        total += a.to(tl.float32)[None, :] * b.to(tl.float32)
    tl.store(inner + row.to(tl.int64) * WIDTH + r, tl.sum(total, 1), mask=r < ranks)


@kernel
def expand_few(
    inner,
    slots,
    table,
    tiles,
    out,
    out_stride,
    SLOTS: tl.constexpr,
    RECORD: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out[t] += inner[t] up, in place, for the columns of a tile. Programs: rows, tiles.

    tiles: int32 [., 4], see `ops.tiles_of`. ALIGNED: all they say is a multiple of 16.
    """
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if (slot < 0) | (slot >= SLOTS):
        return
    tile = tiles + tl.program_id(1) * 4
    member = tl.load(tile)
    column = tl.load(tile + 1)
    target = tl.load(tile + 2)
    width = tl.load(tile + 3)
    record = table + slot * RECORD + 2 + member * 3
    ranks = tl.load(record + 2).to(tl.int32)
    if ranks == 0:
        return
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
    factors = inner + row.to(tl.int64) * WIDTH + first + r
    at = r[:, None] * width + (column + n)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, ranks, BLOCK_R):
        there = r < ranks - start
        a = tl.load(factors + start, mask=there, other=0.0)
        b = tl.load(up + at + start * width, mask=there[:, None] & inside[None, :], other=0.0)
        total += a[:, None] * b.to(tl.float32)
    results = out + row.to(tl.int64) * out_stride + target + n
    before = tl.load(results, mask=inside, other=0.0).to(tl.float32)
    tl.store(results, (before + tl.sum(total, 0)).to(out.dtype.element_ty), mask=inside)


@kernel
def embed_rows(
    ids,
    slots,
    table,
    out,
    out_stride,
    SLOTS: tl.constexpr,
    RECORD: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out[t] += down[ids[t]] up of row t's slot, in place. down: [V, ranks]. Programs: rows, tiles of COLUMNS."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if (slot < 0) | (slot >= SLOTS):
        return
    record = table + slot * RECORD
    ranks = tl.load(record + 1).to(tl.int32)
    if ranks == 0:
        return
    down = tl.load(record).to(tl.pointer_type(out.dtype.element_ty))
    up = tl.load(record + 2).to(tl.pointer_type(out.dtype.element_ty))
    if COLUMNS % 16 == 0:
        up = tl.multiple_of(up, 16)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < COLUMNS
    r = tl.arange(0, BLOCK_R)
    factors = down + tl.load(ids + row) * ranks + r
    total = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, ranks, BLOCK_R):
        there = r < ranks - start
        a = tl.load(factors + start, mask=there, other=0.0).to(tl.float32)
        at = (start + r)[:, None] * COLUMNS + n[None, :]
        b = tl.load(up + at, mask=there[:, None] & inside[None, :], other=0.0)
        total += a[:, None] * b.to(tl.float32)
    results = out + row.to(tl.int64) * out_stride + n
    before = tl.load(results, mask=inside, other=0.0).to(tl.float32)
    tl.store(results, (before + tl.sum(total, 0)).to(out.dtype.element_ty), mask=inside)
