"""The products of a mixture with weights in 8 or 4 bits, which are widened in registers: tiles as of `pegboard_triton.moe.grouped`.

scales: float32 [E, R, C], one for `SHARED` rows and `SCALED` columns of an expert's matrix (of gate's and of up's, which begin anew);
with C > 1 BLOCK_K is SCALED.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pegboard_triton.kernel import kernel
from pegboard_triton.moe.grouped import _activate, _rows_few, _rows_sorted, _swizzle
from pegboard_triton.quantized.packed import FLOAT8, INT4, widen


@triton.jit
def _dot(a, tile, total, scale, FORMAT: tl.constexpr, COLUMNS: tl.constexpr):
    values = tl.trans(widen(tile, FORMAT, a.dtype))
    if COLUMNS == 1:
        return tl.dot(a, values, total, input_precision="ieee")
    else:
        return total + tl.dot(a, values, input_precision="ieee") * scale[None, :]


@kernel
def packed_gate_up(
    x,
    weight,
    scales,
    ids,
    order,
    offsets,
    out,
    pairs,
    blocks,
    x_stride,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FEW: tl.constexpr,
    FORMAT: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[row] [I] = activation(x[token] gate^T) * (x[token] up^T). weight: [E, 2 I, H], gate first, or of H / 2 bytes a row."""
    packing: tl.constexpr = 2 if FORMAT == INT4 else 1
    block, tile = _swizzle((INNER + BLOCK_N - 1) // BLOCK_N, blocks, GROUP)
    if FEW > 0:
        expert, pair, row, there, any_there = _rows_few(ids, pairs, block, EXPERTS, FEW, BLOCK_M)
    else:
        expert, pair, row, there, any_there = _rows_sorted(order, offsets, block, EXPERTS, WIDTH, BLOCK_M)
    if any_there:
        even: tl.constexpr = HIDDEN % BLOCK_K == 0
        columns: tl.constexpr = (HIDDEN + SCALED - 1) // SCALED
        heights: tl.constexpr = (INNER + SHARED - 1) // SHARED
        k = tl.arange(0, BLOCK_K)
        byte = tl.arange(0, BLOCK_K // packing)
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        column = tl.minimum(n, INNER - 1)
        inputs = x + (pair // TOP_K).to(tl.int64)[:, None] * x_stride + k[None, :]
        first = expert.to(tl.int64) * (2 * INNER) + column
        gates = weight + first[:, None] * (HIDDEN // packing) + byte[None, :]
        ups = gates + INNER * (HIDDEN // packing)
        gate_scales = scales + expert.to(tl.int64) * (2 * heights * columns) + column // SHARED * columns
        up_scales = gate_scales + heights * columns
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        gate_scale = tl.load(gate_scales)
        up_scale = tl.load(up_scales)
        for start in range(0, HIDDEN, BLOCK_K):
            if even:
                a = tl.load(inputs + start, mask=there[:, None], other=0.0)
                b = tl.load(gates + start // packing)
                c = tl.load(ups + start // packing)
            else:
                inside = byte < (HIDDEN - start) // packing
                a = tl.load(inputs + start, mask=there[:, None] & (k < HIDDEN - start)[None, :], other=0.0)
                b = tl.load(gates + start // packing, mask=inside[None, :], other=0)
                c = tl.load(ups + start // packing, mask=inside[None, :], other=0)
            if columns > 1:
                gate_scale = tl.load(gate_scales + start // SCALED)
                up_scale = tl.load(up_scales + start // SCALED)
            gate = _dot(a, b, gate, gate_scale, FORMAT, columns)
            up = _dot(a, c, up, up_scale, FORMAT, columns)
        if columns == 1:
            gate = gate * gate_scale[None, :]
            up = up * up_scale[None, :]
        if FORMAT == FLOAT8:
            gate, up = gate * 256.0, up * 256.0
        value = (_activate(gate, ACTIVATION) * up).to(out.dtype.element_ty)
        mask = there[:, None] & (n < INNER)[None, :]
        tl.store(out + row.to(tl.int64)[:, None] * INNER + n[None, :], value, mask=mask)


@kernel
def packed_down(
    act,
    weight,
    scales,
    ids,
    order,
    offsets,
    weights,
    out,
    pairs,
    blocks,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    FEW: tl.constexpr,
    FORMAT: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[pair] [H] = weights[pair] * act[row] weight^T. weight: [E, H, I], or of I / 2 bytes a row."""
    packing: tl.constexpr = 2 if FORMAT == INT4 else 1
    block, tile = _swizzle((HIDDEN + BLOCK_N - 1) // BLOCK_N, blocks, GROUP)
    if FEW > 0:
        expert, pair, row, there, any_there = _rows_few(ids, pairs, block, EXPERTS, FEW, BLOCK_M)
    else:
        expert, pair, row, there, any_there = _rows_sorted(order, offsets, block, EXPERTS, WIDTH, BLOCK_M)
    if any_there:
        even: tl.constexpr = INNER % BLOCK_K == 0
        columns: tl.constexpr = (INNER + SCALED - 1) // SCALED
        heights: tl.constexpr = (HIDDEN + SHARED - 1) // SHARED
        k = tl.arange(0, BLOCK_K)
        byte = tl.arange(0, BLOCK_K // packing)
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        column = tl.minimum(n, HIDDEN - 1)
        inputs = act + row.to(tl.int64)[:, None] * INNER + k[None, :]
        first = expert.to(tl.int64) * HIDDEN + column
        tiles = weight + first[:, None] * (INNER // packing) + byte[None, :]
        own_scales = scales + expert.to(tl.int64) * (heights * columns) + column // SHARED * columns
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        scale = tl.load(own_scales)
        for start in range(0, INNER, BLOCK_K):
            if even:
                a = tl.load(inputs + start, mask=there[:, None], other=0.0)
                b = tl.load(tiles + start // packing)
            else:
                inside = byte < (INNER - start) // packing
                a = tl.load(inputs + start, mask=there[:, None] & (k < INNER - start)[None, :], other=0.0)
                b = tl.load(tiles + start // packing, mask=inside[None, :], other=0)
            if columns > 1:
                scale = tl.load(own_scales + start // SCALED)
            total = _dot(a, b, total, scale, FORMAT, columns)
        if columns == 1:
            total = total * scale[None, :]
        if FORMAT == FLOAT8:
            total = total * 256.0
        value = (total * tl.load(weights + pair, mask=there, other=0.0).to(tl.float32)[:, None]).to(
            out.dtype.element_ty
        )
        mask = there[:, None] & (n < HIDDEN)[None, :]
        tl.store(out + pair.to(tl.int64)[:, None] * HIDDEN + n[None, :], value, mask=mask)
