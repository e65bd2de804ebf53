"""One or two rows times a packed weight, without matrix units: the widened numbers go no further than a thread's registers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.kernel import kernel
from pegboard_triton.quantized.packed import FLOAT8, INT4, NF4, Packed, nf4_values, plain_scale

MOST = 2
"""Rows of x that the kernel takes."""


@triton.jit
def _pair(word, DTYPE: tl.constexpr):
    """Return the two 16-bit numbers that lie in a word of 32 bits, float32."""
    if DTYPE == tl.bfloat16:
        first = (word << 16).to(tl.float32, bitcast=True)
        return first, (word & -65536).to(tl.float32, bitcast=True)
    else:
        first = (word & 65535).to(tl.int16).to(tl.float16, bitcast=True)
        return first.to(tl.float32), (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _store(total, bias, out, at, n, outputs, BIAS: tl.constexpr):
    value = tl.sum(total, 1)
    if BIAS:
        value += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(out + at + n, value.to(out.dtype.element_ty), mask=n < outputs)


@kernel
def packed_few(
    x,
    weight,
    scales,
    table,
    nested,
    offset,
    values,
    bias,
    out,
    outputs,
    x_stride,
    out_stride,
    INPUTS: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    NESTED: tl.constexpr,
    FORMAT: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out [ROWS, N] = x [ROWS, K] values^T + bias; the constants as of `packed_rows`, BLOCK_K in bytes of the weight.

    x: for weights with two columns a byte its words of 32 bits, each two of its numbers. values: what the codes of NF4 stand for.
    """
    packing: tl.constexpr = 2 if FORMAT == INT4 or FORMAT == NF4 else 1
    length: tl.constexpr = INPUTS // packing
    groups: tl.constexpr = (INPUTS + SCALED - 1) // SCALED
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row = tl.minimum(n, outputs - 1).to(tl.int64)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    second = total
    for start in range(0, length, BLOCK_K):
        at = start + k
        inside = at < length
        if length % BLOCK_K == 0:
            tile = tl.load(weight + row[:, None] * length + at[None, :])
        else:
            tile = tl.load(weight + row[:, None] * length + at[None, :], mask=inside[None, :], other=0)
        if packing == 2:
            if FORMAT == INT4:
                even, odd = (tile & 15).to(tl.float32) - 8.0, (tile >> 4).to(tl.float32) - 8.0
            else:
                even, odd = tl.load(values + (tile >> 4)), tl.load(values + (tile & 15))
            a, b = _pair(tl.load(x + at, mask=inside, other=0), out.dtype.element_ty)
            part = even * a[None, :] + odd * b[None, :]
            if ROWS > 1:
                a, b = _pair(tl.load(x + x_stride + at, mask=inside, other=0), out.dtype.element_ty)
                other = even * a[None, :] + odd * b[None, :]
        else:
            if FORMAT == FLOAT8:
                bits = tile.to(tl.uint16)
                wide = (((bits & 128) << 8) | ((bits & 127) << 7)).to(tl.float16, bitcast=True).to(tl.float32)
            else:
                wide = tile.to(tl.float32)
            part = wide * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)[None, :]
            if ROWS > 1:
                other = wide * tl.load(x + x_stride + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        if groups > 1:
            group = tl.where(inside, at * packing // SCALED, 0)
            scale = plain_scale(
                scales, table, nested, offset, (row // SHARED * groups)[:, None] + group[None, :], NESTED
            )
            total += part * scale
            if ROWS > 1:
                second += other * scale
        else:
            total += part
            if ROWS > 1:
                second += other
    if groups == 1:
        scale = tl.load(scales + row // SHARED)[:, None]
        total *= scale
        second *= scale
    if FORMAT == FLOAT8:
        total *= 256.0
        second *= 256.0
    _store(total, bias, out, 0, n, outputs, BIAS)
    if ROWS > 1:
        _store(second, bias, out, out_stride, n, outputs, BIAS)


def few_product(x: Tensor, weight: Packed, bias: Tensor | None, use: Mapping[str, int], out: Tensor) -> None:
    """Write x values^T + bias to `out` [M, N], whose rows may be part of wider ones. x: M <= MOST rows of 16-bit numbers, contiguous."""
    outputs, inputs = weight.shape
    words = x.view(torch.int32) if weight.packing == 2 else x
    packed_few[(triton.cdiv(outputs, use["BLOCK_N"]),)](
        words,
        weight.codes,
        weight.scales,
        weight.table,
        weight.nested,
        weight.offset,
        nf4_values(x.device) if weight.form == NF4 else None,
        bias,
        out,
        outputs,
        words.stride(0),
        out.stride(0),
        INPUTS=inputs,
        SHARED=weight.shared,
        SCALED=weight.scaled,
        NESTED=weight.coded,
        FORMAT=weight.form,
        BIAS=bias is not None,
        ROWS=x.shape[0],
        **use,
    )
