"""The products of a mixture with weights in 8 or 4 bits, which are widened in registers: tiles as of `pegboard_triton.moe.grouped`.

scales: [E, R, C], one for `SHARED` rows and `SCALED` columns of an expert's matrix (of gate's and of up's, which begin anew); with C > 1
BLOCK_K is SCALED. They are float32, or codes as of `pegboard_triton.quantized.packed.matrix_scale`. numbers: what codes of NF4 stand for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pegboard_triton.kernel import kernel
from pegboard_triton.moe.grouped import _activate, _place
from pegboard_triton.quantized.packed import FLOAT8, INT4, NF4, matrix_scale, widen


@triton.jit
def _dot(a, tile, numbers, total, scale, FORMAT: tl.constexpr, COLUMNS: tl.constexpr):
    values = tl.trans(widen(tile, FORMAT, a.dtype, numbers))
    if COLUMNS == 1:
        return tl.dot(a, values, total, input_precision="ieee")
    else:
        return total + tl.dot(a, values, input_precision="ieee") * scale[None, :]


@triton.jit
def _load_inputs(inputs, start, there, k, LENGTH: tl.constexpr, BLOCK_K: tl.constexpr):
    if LENGTH % BLOCK_K == 0:
        return tl.load(inputs + start, mask=there[:, None], other=0.0)
    else:
        return tl.load(inputs + start, mask=there[:, None] & (k < LENGTH - start)[None, :], other=0.0)


@triton.jit
def _load_packed(tiles, start, byte, LENGTH: tl.constexpr, PACKING: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return stored bytes of the columns from `start` on. LENGTH: columns of a row, PACKING of them in a byte."""
    if LENGTH % BLOCK_K == 0:
        return tl.load(tiles + start // PACKING)
    else:
        return tl.load(tiles + start // PACKING, mask=(byte < (LENGTH - start) // PACKING)[None, :], other=0)


@kernel
def packed_gate_up(
    x,
    weight,
    scales,
    table,
    nested,
    offset,
    numbers,
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
    NESTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[row] [I] = activation(x[token] gate^T) * (x[token] up^T). weight: [E, 2 I, H], gate first, or of H / 2 bytes a row."""
    packing: tl.constexpr = 2 if FORMAT == INT4 or FORMAT == NF4 else 1
    tiles: tl.constexpr = (INNER + BLOCK_N - 1) // BLOCK_N
    tile, expert, pair, row, there, any_there, _, _, _ = _place(
        ids, order, offsets, pairs, blocks, tiles, EXPERTS, WIDTH, FEW, BLOCK_M, 0, GROUP
    )
    if any_there:
        columns: tl.constexpr = (HIDDEN + SCALED - 1) // SCALED
        size: tl.constexpr = (INNER + SHARED - 1) // SHARED * columns
        k = tl.arange(0, BLOCK_K)
        byte = tl.arange(0, BLOCK_K // packing)
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        column = tl.minimum(n, INNER - 1)
        inputs = x + (pair // TOP_K).to(tl.int64)[:, None] * x_stride + k[None, :]
        first = expert.to(tl.int64) * (2 * INNER) + column
        gates = weight + first[:, None] * (HIDDEN // packing) + byte[None, :]
        ups = gates + INNER * (HIDDEN // packing)
        matrix = expert.to(tl.int64) * 2
        own = column // SHARED * columns
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        gate_scale = matrix_scale(scales, table, nested, offset, matrix, own, size, NESTED)
        up_scale = matrix_scale(scales, table, nested, offset, matrix + 1, own, size, NESTED)
        for start in range(0, HIDDEN, BLOCK_K):
            a = _load_inputs(inputs, start, there, k, HIDDEN, BLOCK_K)
            b = _load_packed(gates, start, byte, HIDDEN, packing, BLOCK_K)
            c = _load_packed(ups, start, byte, HIDDEN, packing, BLOCK_K)
            if columns > 1:
                at = own + start // SCALED
                gate_scale = matrix_scale(scales, table, nested, offset, matrix, at, size, NESTED)
                up_scale = matrix_scale(scales, table, nested, offset, matrix + 1, at, size, NESTED)
            gate = _dot(a, b, numbers, gate, gate_scale, FORMAT, columns)
            up = _dot(a, c, numbers, up, up_scale, FORMAT, columns)
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
    table,
    nested,
    offset,
    numbers,
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
    NESTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[pair] [H] = weights[pair] * act[row] weight^T. weight: [E, H, I], or of I / 2 bytes a row."""
    packing: tl.constexpr = 2 if FORMAT == INT4 or FORMAT == NF4 else 1
    tiles: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    tile, expert, pair, row, there, any_there, _, _, _ = _place(
        ids, order, offsets, pairs, blocks, tiles, EXPERTS, WIDTH, FEW, BLOCK_M, 0, GROUP
    )
    if any_there:
        columns: tl.constexpr = (INNER + SCALED - 1) // SCALED
        size: tl.constexpr = (HIDDEN + SHARED - 1) // SHARED * columns
        k = tl.arange(0, BLOCK_K)
        byte = tl.arange(0, BLOCK_K // packing)
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        column = tl.minimum(n, HIDDEN - 1)
        inputs = act + row.to(tl.int64)[:, None] * INNER + k[None, :]
        first = expert.to(tl.int64) * HIDDEN + column
        stored = weight + first[:, None] * (INNER // packing) + byte[None, :]
        matrix = expert.to(tl.int64)
        own = column // SHARED * columns
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        scale = matrix_scale(scales, table, nested, offset, matrix, own, size, NESTED)
        for start in range(0, INNER, BLOCK_K):
            a = _load_inputs(inputs, start, there, k, INNER, BLOCK_K)
            b = _load_packed(stored, start, byte, INNER, packing, BLOCK_K)
            if columns > 1:
                at = own + start // SCALED
                scale = matrix_scale(scales, table, nested, offset, matrix, at, size, NESTED)
            total = _dot(a, b, numbers, total, scale, FORMAT, columns)
        if columns == 1:
            total = total * scale[None, :]
        if FORMAT == FLOAT8:
            total = total * 256.0
        shares = tl.load(weights + pair, mask=there, other=0.0).to(tl.float32)
        value = (total * shares[:, None]).to(out.dtype.element_ty)
        mask = there[:, None] & (n < HIDDEN)[None, :]
        tl.store(out + pair.to(tl.int64)[:, None] * HIDDEN + n[None, :], value, mask=mask)
