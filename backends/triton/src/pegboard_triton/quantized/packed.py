"""Tiles of weights in fewer bits, read and widened in registers.

Formats, by the number that kernels are compiled with:
PLAIN    the weight itself.
INT8     int8 [N, K]; a scale for each row, which the caller multiplies the result with.
FLOAT8   float8 e4m3 as bytes; values come 256 times too small: scales are told to make up for it.
INT4     bytes [N, K / 2], code + 8 of column 2 j in the lower half of byte j; scales for groups of columns, by the caller.
NF4      bytes [N, K / 2], the code of column 2 j in the upper half; scales for blocks of 64 columns. Values are read from a table of 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.blockwise import dynamic_table, normal_table

PLAIN = tl.constexpr(0)
INT8 = tl.constexpr(1)
FLOAT8 = tl.constexpr(2)
INT4 = tl.constexpr(3)
NF4 = tl.constexpr(4)


@triton.jit
def widen(tile, FORMAT: tl.constexpr, DTYPE: tl.constexpr, numbers=None):
    """Return the values of a tile [R, C] of stored elements: [R, C] in DTYPE, or [R, 2 C] where a byte holds two.

    numbers: what the codes of NF4 stand for, float32 [16].
    """
    if FORMAT == PLAIN or FORMAT == INT8:
        return tile.to(DTYPE)
    elif FORMAT == FLOAT8:
        # The bits of e4m3 are those of a float16 whose exponent is too small by 8: that of numbers below the normal range, too.
        bits = tile.to(tl.uint16)
        half = ((bits & 128) << 8) | ((bits & 127) << 7)
        return half.to(tl.float16, bitcast=True).to(tl.float32).to(DTYPE)
    elif FORMAT == NF4:
        joined = tl.join(tl.load(numbers + (tile >> 4)), tl.load(numbers + (tile & 15)))
        # Rounded behind the reshape: Triton 3.6 fails on a matrix operand that is one, where blocks are as short as these.
        return tl.reshape(joined, [tile.shape[0], 2 * tile.shape[1]]).to(DTYPE)
    else:
        joined = tl.join(_code4(tile & 15, DTYPE), _code4(tile >> 4, DTYPE))
        return tl.reshape(joined, [tile.shape[0], 2 * tile.shape[1]])


@triton.jit
def _code4(code, DTYPE: tl.constexpr):
    if DTYPE == tl.bfloat16:
        # 0x4300 is 128 in bfloat16, whose last bits then count ones: no conversion from integers.
        return (code.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    return code.to(DTYPE) - 8.0


@triton.jit
def plain_scale(scales, table, nested, offset, at, NESTED: tl.constexpr):
    """Return the scales at indices. NESTED: 0 for float32 ones; else how many codes of `table` share one of `nested`, + offset."""
    if NESTED == 0:
        return tl.load(scales + at)
    else:
        return tl.load(table + tl.load(scales + at)) * tl.load(nested + at // NESTED) + tl.load(offset)


@triton.jit
def matrix_scale(scales, table, nested, offset, matrix, at, SIZE: tl.constexpr, NESTED: tl.constexpr):
    """Return the scales at indices `at` of one of several matrices, which have SIZE each. NESTED: as of `plain_scale`; the codes of each
    matrix begin to share anew, and each has an offset.
    """
    if NESTED == 0:
        return tl.load(scales + matrix * SIZE + at)
    else:
        shared: tl.constexpr = (SIZE + NESTED - 1) // NESTED
        value = tl.load(table + tl.load(scales + matrix * SIZE + at))
        return value * tl.load(nested + matrix * shared + at // NESTED) + tl.load(offset + matrix)


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [N, K] of a format. codes: contiguous bytes [N, K] or [N, K / 2]. scales: one for `shared` rows and `scaled` columns;
    float32, or uint8 codes of `table`, `coded` of which share one of `nested`, and `offset` is to be added. All contiguous.
    """

    form: Any
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    scaled: int
    table: Tensor | None = None
    nested: Tensor | None = None
    offset: Tensor | None = None
    coded: int = 0
    shared: int = 1

    @property
    def packing(self) -> int:
        """Columns in a byte."""
        return 2 if self.form in (INT4, NF4) else 1


@cache
def nf4_values(device: torch.device) -> Tensor:
    """Return the 16 values of NF4, float32."""
    return normal_table().values.to(device)


@cache
def dynamic_values(device: torch.device) -> Tensor:
    """Return the 256 values that codes of scales stand for, float32."""
    return dynamic_table(signed=True).values.to(device)
