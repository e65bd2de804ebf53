"""One token, or very few: each pair's weights are read once, row by row, without tiles of matrix units."""

from __future__ import annotations

import triton.language as tl

from pegboard_triton.kernel import kernel
from pegboard_triton.moe.grouped import _activate


@kernel
def single_gate_up(
    x,
    weight,
    ids,
    out,
    x_stride,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[pair] [I] = activation(x[token] gate^T) * (x[token] up^T). Programs: pairs, tiles of I."""
    pair = tl.program_id(0)
    expert = tl.load(ids + pair).to(tl.int64)
    if (expert >= 0) & (expert < EXPERTS):
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        column = n if INNER % BLOCK_N == 0 else tl.minimum(n, INNER - 1)
        even: tl.constexpr = HIDDEN % BLOCK_K == 0
        inputs = x + (pair // TOP_K).to(tl.int64) * x_stride + k
        gates = weight + expert * (2 * INNER * HIDDEN) + column[:, None] * HIDDEN + k[None, :]
        gate = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for start in tl.range(0, HIDDEN, BLOCK_K, num_stages=STAGES):
            if even:
                b = tl.load(gates + start)
                c = tl.load(gates + INNER * HIDDEN + start)
                a = tl.load(inputs + start)
            else:
                inside = k < HIDDEN - start
                b = tl.load(gates + start, mask=inside[None, :], other=0.0)
                c = tl.load(gates + INNER * HIDDEN + start, mask=inside[None, :], other=0.0)
                a = tl.load(inputs + start, mask=inside, other=0.0)
            a = a.to(tl.float32)[None, :]
            gate += a * b.to(tl.float32)
            up += a * c.to(tl.float32)
        value = _activate(tl.sum(gate, 1), ACTIVATION) * tl.sum(up, 1)
        tl.store(out + pair.to(tl.int64) * INNER + n, value.to(out.dtype.element_ty), mask=n < INNER)


@kernel
def single_down(
    act,
    weight,
    ids,
    scales,
    out,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[t] [H] = the sum over k of scales[t, k] * act[t, k] weight^T, in the order of k. Programs: tiles of H, tokens."""
    token = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    column = n if HIDDEN % BLOCK_N == 0 else tl.minimum(n, HIDDEN - 1)
    parts: tl.constexpr = (INNER + BLOCK_K - 1) // BLOCK_K
    even: tl.constexpr = INNER % BLOCK_K == 0
    rows = weight + column.to(tl.int64)[:, None] * INNER + k[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for step in tl.range(0, TOP_K * parts, num_stages=STAGES):
        pair = token * TOP_K + step // parts
        start = step % parts * BLOCK_K
        expert = tl.load(ids + pair).to(tl.int64)
        scale = tl.load(scales + pair).to(tl.float32)
        known = (expert >= 0) & (expert < EXPERTS)
        matrix = tl.where(known, expert, 0) * (HIDDEN * INNER) + start
        inside = known if even else known & (k < INNER - start)
        a = tl.load(act + pair.to(tl.int64) * INNER + start + k, mask=inside, other=0.0)
        if even:
            b = tl.load(rows + matrix)
        else:
            b = tl.load(rows + matrix, mask=inside[None, :], other=0.0)
        total += (a.to(tl.float32) * scale)[None, :] * b.to(tl.float32)
    tl.store(out + token.to(tl.int64) * HIDDEN + n, tl.sum(total, 1).to(out.dtype.element_ty), mask=n < HIDDEN)
