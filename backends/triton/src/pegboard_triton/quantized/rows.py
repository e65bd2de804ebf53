"""Few rows times a packed weight: its bytes are read once and widened in registers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.kernel import kernel
from pegboard_triton.quantized.packed import FLOAT8, INT4, Packed, widen


@kernel
def packed_rows(
    x,
    weight,
    scales,
    bias,
    out,
    rows,
    outputs,
    x_stride,
    out_stride,
    INPUTS: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    FORMAT: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out [M, N] = x [M, K] values^T + bias. SHARED: rows of a scale. SCALED: columns of a scale, of which BLOCK_K is a
    divisor, or all of them.

    With SPLIT > 1: out [SPLIT, M, N] float32, the sums over parts of K, without bias.
    """
    packing: tl.constexpr = 2 if FORMAT == INT4 else 1
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    byte = tl.arange(0, BLOCK_K // packing)
    row = tl.minimum(n, outputs - 1).to(tl.int64)
    inputs = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    weights = weight + row[:, None] * (INPUTS // packing) + byte[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    steps: tl.constexpr = (INPUTS + BLOCK_K - 1) // BLOCK_K
    part: tl.constexpr = (steps + SPLIT - 1) // SPLIT * BLOCK_K
    even: tl.constexpr = INPUTS % BLOCK_K == 0 and steps % SPLIT == 0
    groups: tl.constexpr = (INPUTS + SCALED - 1) // SCALED
    first = tl.program_id(1) * part
    for start in range(first, first + part, BLOCK_K):
        if even:
            a = tl.load(inputs + start)
            b = tl.load(weights + start // packing)
        else:
            a = tl.load(inputs + start, mask=(k < INPUTS - start)[None, :], other=0.0)
            b = tl.load(weights + start // packing, mask=(byte < (INPUTS - start) // packing)[None, :], other=0)
        values = tl.trans(widen(b, FORMAT, x.dtype.element_ty))
        if groups == 1:
            total = tl.dot(a, values, total, input_precision="ieee")
        else:
            # A scale for each output once a step, in the place of one for each weight.
            group = tl.minimum(start // SCALED, groups - 1)
            scale = tl.load(scales + row // SHARED * groups + group)
            total += tl.dot(a, values, input_precision="ieee") * scale[None, :]
    if groups == 1:
        total = total * tl.load(scales + row // SHARED)[None, :]
    if FORMAT == FLOAT8:
        total = total * 256.0
    if BIAS and SPLIT == 1:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    at = out + (tl.program_id(1) * rows + m).to(tl.int64)[:, None] * out_stride + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(m < rows)[:, None] & (n < outputs)[None, :])


@kernel
def add_parts(
    parts, bias, out, size, outputs, out_stride, BIAS: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr
):
    """out [M, N] = the sum of parts [SPLIT, M, N] in their order, + bias. size: M N."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * size + at, mask=there, other=0.0)
    if BIAS:
        total += tl.load(bias + at % outputs, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at // outputs * out_stride + at % outputs, total.to(out.dtype.element_ty), mask=there)


def product(
    x: Tensor, weight: Packed, bias: Tensor | None, use: Mapping[str, int], out: Tensor | None = None
) -> Tensor:
    """Return x values^T + bias [M, N], in `out` if given, whose rows may be part of wider ones. x: rows contiguous in themselves."""
    rows, (outputs, inputs) = x.shape[0], weight.shape
    split = use["SPLIT"]
    if out is None:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    target = out if split == 1 else torch.empty(split * rows, outputs, dtype=torch.float32, device=x.device)
    packed_rows[(triton.cdiv(outputs, use["BLOCK_N"]), split)](
        x,
        weight.codes,
        weight.scales,
        bias,
        target,
        rows,
        outputs,
        x.stride(0),
        target.stride(0),
        INPUTS=inputs,
        SHARED=weight.shared,
        SCALED=weight.scaled,
        FORMAT=weight.form,
        BIAS=bias is not None,
        BLOCK_M=16 if rows <= 16 else 32,
        **use,
    )
    if split > 1:
        size = rows * outputs
        add_parts[(triton.cdiv(size, 512),)](
            target,
            bias,
            out,
            size,
            outputs,
            out.stride(0),
            BIAS=bias is not None,
            SPLIT=split,
            BLOCK=512,
            num_warps=4,
        )
    return out
