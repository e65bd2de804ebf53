"""Tiles of weights in fewer bits, read and widened in registers.

Formats, by the number that kernels are compiled with:
PLAIN    the weight itself.
INT8     int8 [N, K]; a scale for each row, which the caller multiplies the result with.
FLOAT8   float8 e4m3 as bytes; values come 256 times too small: scales are told to make up for it.
INT4     bytes [N, K / 2], code + 8 of column 2 j in the lower half of byte j; scales for groups of columns, by the caller.
NF4      bytes [N, K / 2], the code of column 2 j in the upper half; scales for blocks of 64 columns, by the caller.
"""

from __future__ import annotations

import triton
import triton.language as tl

PLAIN = tl.constexpr(0)
INT8 = tl.constexpr(1)
FLOAT8 = tl.constexpr(2)
INT4 = tl.constexpr(3)
NF4 = tl.constexpr(4)


@triton.jit
def widen(tile, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Return the values of a tile [R, C] of stored elements: [R, C] in DTYPE, or [R, 2 C] where a byte holds two."""
    if FORMAT == PLAIN or FORMAT == INT8:
        return tile.to(DTYPE)
    elif FORMAT == FLOAT8:
        # The bits of e4m3 are those of a float16 whose exponent is too small by 8: that of numbers below the normal range, too.
        bits = tile.to(tl.uint16)
        half = ((bits & 128) << 8) | ((bits & 127) << 7)
        return half.to(tl.float16, bitcast=True).to(tl.float32).to(DTYPE)
    else:
        low, high = tile & 15, tile >> 4
        if FORMAT == INT4:
            first, second = _code4(low, DTYPE), _code4(high, DTYPE)
        else:
            first, second = nf4_value(high).to(DTYPE), nf4_value(low).to(DTYPE)
        joined = tl.join(first, second)
        return tl.reshape(joined, [tile.shape[0], 2 * tile.shape[1]])


@triton.jit
def _code4(code, DTYPE: tl.constexpr):
    if DTYPE == tl.bfloat16:
        # 0x4300 is 128 in bfloat16, whose last bits then count ones: no conversion from integers.
        return (code.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    return code.to(DTYPE) - 8.0


@triton.jit
def nf4_value(code):
    """Return the value of NF4 codes 0 … 15 (arXiv:2305.14314, appendix E), float32, by halving the table with each bit."""
    bit0, bit1, bit2, bit3 = (code & 1) > 0, (code & 2) > 0, (code & 4) > 0, (code & 8) > 0
    a = tl.where(bit0, -0.6961928009986877, -1.0)
    b = tl.where(bit0, -0.39491748809814453, -0.5250730514526367)
    c = tl.where(bit0, -0.18477343022823334, -0.28444138169288635)
    d = tl.where(bit0, 0.0, -0.09105003625154495)
    e = tl.where(bit0, 0.16093020141124725, 0.07958029955625534)
    f = tl.where(bit0, 0.33791524171829224, 0.24611230194568634)
    g = tl.where(bit0, 0.5626170039176941, 0.44070982933044434)
    h = tl.where(bit0, 1.0, 0.7229568362236023)
    lower = tl.where(bit2, tl.where(bit1, d, c), tl.where(bit1, b, a))
    upper = tl.where(bit2, tl.where(bit1, h, g), tl.where(bit1, f, e))
    return tl.where(bit3, upper, lower)


@triton.jit
def plain_scale(scales, table, nested, offset, at, NESTED: tl.constexpr):
    """Return the scales at indices. NESTED: 0 for float32 ones; else how many codes of `table` share one of `nested`, + offset."""
    if NESTED == 0:
        return tl.load(scales + at)
    else:
        return tl.load(table + tl.load(scales + at)) * tl.load(nested + at // NESTED) + tl.load(offset)
