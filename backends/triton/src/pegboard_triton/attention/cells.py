"""What a cache may hold, as kernels read and write it: plain numbers, or codes with a float32 scale for each row of a head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PLAIN, INT8, FP8 = 0, 1, 2
"""Kinds of cells. Codes of FP8 are e4m3 (largest 448, no infinity), which kernels treat as bytes: not every GPU knows them."""

CODES = {torch.int8: INT8, torch.float8_e4m3fn: FP8}


def kind(dtype: torch.dtype) -> int:
    """Return the kind of cells of a cache of `dtype`."""
    return CODES.get(dtype, PLAIN)


def raw(cells: Tensor) -> Tensor:
    """Return cells as kernels take them: codes of FP8 as uint8."""
    return cells.view(torch.uint8) if cells.dtype == torch.float8_e4m3fn else cells


@triton.jit
def widened(cells, dtype: tl.constexpr, KIND: tl.constexpr):
    """Return codes as numbers of `dtype`, exactly; those of FP8 are 256 times too small, which `row_scale` makes good.

    Conversions between integers and floats are slow instructions: where they would be most of the work, bits are put in place instead.
    """
    if KIND == 2:
        bits = cells.to(tl.uint16)
        if dtype == tl.bfloat16:
            # The bits of e4m3 at the places of bfloat16, whose exponent counts from 127 where theirs counts from 7; times 2^112.
            placed = (((bits & 0x80) << 8) | ((bits & 0x7F) << 4)).to(tl.bfloat16, bitcast=True)
            return placed * tl.full([], 5192296858534827628530496329220096.0, tl.bfloat16)
        # float16's exponent counts from 15.
        return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(dtype)
    elif KIND == 1 and dtype == tl.bfloat16:
        # 128 and the low seven bits, less 128, or less 256 where the sign's bit is set: 0x4300 is 128, 0x4380 is 256.
        bits = cells.to(tl.uint8, bitcast=True).to(tl.uint16)
        low = (0x4300 | (bits & 0x7F)).to(tl.bfloat16, bitcast=True)
        return low - (0x4300 | (bits & 0x80)).to(tl.bfloat16, bitcast=True)
    else:
        return cells.to(dtype)


@triton.jit
def row_scale(scales, KIND: tl.constexpr):
    """Return the factors on what `widened` gave."""
    if KIND == 2:
        return scales * 256.0
    else:
        return scales


@triton.jit
def encoded(rows, KIND: tl.constexpr):
    """Return (codes, scales [R]) of float32 rows [R, D]: the greatest magnitude of a row becomes the greatest code, ties round to even.

    What is not finite makes its row's scale NaN, so that whoever reads it learns of it.
    """
    magnitude = tl.abs(rows)
    # A maximum need not keep NaN; a sum does, and makes infinity minus infinity NaN.
    spoilt = tl.sum(rows - rows, axis=1)
    scales = (
        tl.div_rn(tl.max(magnitude, axis=1), tl.full([rows.shape[0]], 127.0 if KIND == 1 else 448.0, tl.float32))
        + spoilt
    )
    safe = tl.where(scales > 0, scales, 1.0)
    steps = tl.div_rn(rows, tl.broadcast_to(safe[:, None], rows.shape))
    if KIND == 1:
        # Adding 1.5 * 2^23 leaves no bits for a fraction: it rounds.
        codes = ((steps + 12582912.0) - 12582912.0).to(tl.int8)
    else:
        size = tl.minimum(tl.abs(steps), 448.0)
        bits = size.to(tl.uint32, bitcast=True)
        # 20 of 23 fraction bits go, to the nearest, ties to even; the exponent then counts from 7 instead of 127.
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
        # Below 2^-6 codes are multiples of 2^-9: what is added leaves no room for less.
        small = (size + 16384.0).to(tl.uint32, bitcast=True) & 0xF
        sign = (steps.to(tl.uint32, bitcast=True) >> 24) & 0x80
        codes = (tl.where(size < 0.015625, small, normal) | sign).to(tl.uint8)
    return codes, scales


@triton.jit
def put(cells, scales, at, rows, mask, HEAD_DIM: tl.constexpr, KIND: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store float32 rows [R, BLOCK_D] at places `at` [R] of a cache where `mask` [R] says so."""
    dims = tl.arange(0, BLOCK_D)
    where = at[:, None] + dims[None, :]
    all_of = mask[:, None] & (dims < HEAD_DIM)[None, :]
    if KIND == 0:
        tl.store(cells + where, rows.to(cells.dtype.element_ty), mask=all_of)
    else:
        codes, factors = encoded(rows, KIND)
        tl.store(cells + where, codes, mask=all_of)
        tl.store(scales + at // HEAD_DIM, factors, mask=mask)


@triton.jit
def turned(
    rows, tokens, mask, cos, sin, weight, eps, offset,
    HEAD_DIM: tl.constexpr, TURNED: tl.constexpr, NORMED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return heads normed, if they are, and turned, float32 [R, BLOCK_D].

    rows: [R] pointers to the heads. tokens: [R], their rows of cos and sin [T, TURNED], sin with its first half negated.
    """
    dims = tl.arange(0, BLOCK_D)
    real = dims < HEAD_DIM
    whole = mask[:, None] & real[None, :]
    # What each dimension is turned with: the one half a turn further on.
    first = dims < TURNED
    other = tl.where(first, (dims + TURNED // 2) % TURNED, dims)
    x = tl.load(rows[:, None] + dims[None, :], mask=whole, other=0.0).to(tl.float32)
    y = tl.load(rows[:, None] + other[None, :], mask=whole, other=0.0).to(tl.float32)
    if NORMED:
        inverse = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)
        x = x * inverse[:, None] * (tl.load(weight + dims, mask=real, other=0.0).to(tl.float32) + offset)[None, :]
        y = y * inverse[:, None] * (tl.load(weight + other, mask=real, other=0.0).to(tl.float32) + offset)[None, :]
    angle = tokens.to(tl.int64)[:, None] * TURNED + dims[None, :]
    known = mask[:, None] & first[None, :]
    c = tl.load(cos + angle, mask=known, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=known, other=0.0).to(tl.float32)
    return x * c + y * s
