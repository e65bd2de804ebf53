"""The product of few rows with a matrix, as in decoding: bound by how fast the matrix is read, each of its rows once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.tuning import choice

MOST = 16
"""Rows of x up to which the kernels here are asked; the narrowest tile of matrix units has as many."""


@triton.jit
def one_row(
    x,
    weight,
    bias,
    out,
    outputs,
    stride,
    INPUTS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out [N] = weight [N, K] x + bias, a few rows of the weight a program, without matrix units."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row = tl.minimum(n, outputs - 1).to(tl.int64)
    weights = weight + row[:, None] * stride + k[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in tl.range(0, INPUTS, BLOCK_K, num_stages=STAGES):
        if INPUTS % BLOCK_K == 0:
            b = tl.load(weights + start)
            a = tl.load(x + start + k)
        else:
            inside = k < INPUTS - start
            b = tl.load(weights + start, mask=inside[None, :], other=0.0)
            a = tl.load(x + start + k, mask=inside, other=0.0)
        total += a.to(tl.float32)[None, :] * b.to(tl.float32)
    value = tl.sum(total, 1)
    if BIAS:
        value += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(out + n, value.to(out.dtype.element_ty), mask=n < outputs)


@triton.jit
def few_rows(
    x,
    weight,
    bias,
    out,
    rows,
    outputs,
    x_stride,
    stride,
    INPUTS: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out [M, N] = x [M, K] weight^T + bias. With SPLIT > 1: out [SPLIT, M, N] float32, the sums over parts of K, without bias."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    row = tl.minimum(n, outputs - 1).to(tl.int64)
    inputs = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    weights = weight + row[None, :] * stride + k[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    steps: tl.constexpr = (INPUTS + BLOCK_K - 1) // BLOCK_K
    part: tl.constexpr = (steps + SPLIT - 1) // SPLIT * BLOCK_K
    even: tl.constexpr = INPUTS % BLOCK_K == 0 and steps % SPLIT == 0
    first = tl.program_id(1) * part
    for start in range(first, first + part, BLOCK_K):
        if even:
            a = tl.load(inputs + start)
            b = tl.load(weights + start)
        else:
            inside = k < INPUTS - start
            a = tl.load(inputs + start, mask=inside[None, :], other=0.0)
            b = tl.load(weights + start, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if BIAS and SPLIT == 1:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    at = out + (tl.program_id(1) * rows + m).to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(m < rows)[:, None] & (n < outputs)[None, :])


@triton.jit
def add_parts(parts, bias, out, size, outputs, BIAS: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """out [M, N] = the sum of parts [SPLIT, M, N] in their order, + bias. size: M N."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * size + at, mask=there, other=0.0)
    if BIAS:
        total += tl.load(bias + at % outputs, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there)


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, use: dict[str, int]) -> Tensor:
    """Return [M, N]. x: [M, K] of at most MOST rows; weight: [N, K]; both with rows that are contiguous in themselves. use: settings."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    common = {"INPUTS": inputs, "BIAS": bias is not None}
    use = dict(use)
    if use.pop("DOT") == 0:
        grid = (triton.cdiv(outputs, use["BLOCK_N"]),)
        one_row[grid](x, weight, bias, out, outputs, weight.stride(0), **common, **use)
        return out
    split = use["SPLIT"]
    target = out if split == 1 else torch.empty(split, rows, outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(outputs, use["BLOCK_N"]), split)
    few_rows[grid](
        x, weight, bias, target, rows, outputs, x.stride(0), weight.stride(0), **common, BLOCK_M=MOST, **use
    )
    if split > 1:
        size = rows * outputs
        add_parts[(triton.cdiv(size, 512),)](
            target, bias, out, size, outputs, BIAS=bias is not None, SPLIT=split, BLOCK=512, num_warps=4
        )
    return out
