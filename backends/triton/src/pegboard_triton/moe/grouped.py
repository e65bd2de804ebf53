"""Products of the rows of each expert with that expert's weights, as tiles of one launch.

The grid is an upper bound that the host knows (pairs and experts); which expert a block of rows belongs to is read from the device, and
a block without rows ends at once. Two ways to find the rows: from `order` and `offsets` (pegboard_triton.moe.order), or, with FEW pairs,
from the ids themselves: the block of a pair is that of the pairs of its expert from it on, if it is the first one of a block.

DESCRIBED: weights (and in `down`, act) are tensor descriptors, [all rows, columns] in blocks of the tile, which a card with a copy engine
for tiles reads without address arithmetic; else pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pegboard_triton.kernel import kernel


@triton.jit
def _block_sorted(offsets, block, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, TAIL: tl.constexpr = 0):  # fmt: skip
    """Return (expert, its first row, the block's first row, the end of the block's rows). SIZE: rows of a block.

    Expert e has the blocks from offsets[e] // SIZE + e on: as many as it needs, since the next expert's begin behind them. The last one
    of an expert that has others takes up to TAIL rows more, in the place of a block that would be nearly empty.
    """
    index = tl.arange(0, WIDTH)
    begins = tl.load(offsets + index, mask=index < EXPERTS, other=0) // SIZE + index
    expert = tl.sum(((begins <= block) & (index < EXPERTS)).to(tl.int32), 0) - 1
    start = tl.load(offsets + expert)
    stop = tl.load(offsets + expert + 1)
    first = start + (block - start // SIZE - expert) * SIZE
    if TAIL > 0:
        taken = (first > start) & (stop - first <= TAIL)
        stop = tl.where(taken, first, tl.where(stop - first > SIZE + TAIL, first + SIZE, stop))
    return expert, start, first, stop


@triton.jit
def _rows_from(order, start, first, stop, COUNT: tl.constexpr):
    """Return (pair [COUNT], row [COUNT], which of them are there) of the rows from `first` on; rows that are not are `start`."""
    row = first + tl.arange(0, COUNT)
    there = row < stop
    return tl.load(order + row, mask=there, other=0), tl.where(there, row, start), there


@triton.jit
def _rows_few(ids, pairs, block, EXPERTS: tl.constexpr, FEW: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the same from the ids of at most FEW pairs; a row is its pair."""
    index = tl.arange(0, FEW)
    expert = tl.load(ids + block).to(tl.int32)
    same = (tl.load(ids + index, mask=index < pairs, other=-1) == expert).to(tl.int32)
    rank = tl.cumsum(same, 0) - 1
    own = tl.sum(tl.where(index < block, same, 0), 0)
    wanted = own + tl.arange(0, BLOCK_M)
    hit = ((rank[None, :] == wanted[:, None]) & (same[None, :] > 0)).to(tl.int32)
    pair = tl.sum(hit * index[None, :], 1)
    there = tl.sum(hit, 1) > 0
    any_there = (own % BLOCK_M == 0) & (expert >= 0) & (expert < EXPERTS)
    return expert, pair, pair, there, any_there


@triton.jit
def _swizzle(tiles, blocks, GROUP: tl.constexpr):
    """Return (block, tile) of this program: GROUP blocks side by side go through all tiles before the next ones do."""
    program = tl.program_id(0)
    if GROUP == 1:
        return program // tiles, program % tiles
    group = program // (GROUP * tiles)
    height = tl.minimum(blocks - group * GROUP, GROUP)
    within = program % (GROUP * tiles)
    return group * GROUP + within % height, within // height


@triton.jit
def _place(ids, order, offsets, pairs, blocks, TILES: tl.constexpr, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, FEW: tl.constexpr,
           BLOCK_M: tl.constexpr, TAIL: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """Return (tile, expert, pair [BLOCK_M], row [BLOCK_M], which of them are there, whether any is; where rows lie in order: the
    expert's first, the block's first, and the end of the block's).
    """
    block, tile = _swizzle(TILES, blocks, GROUP)
    if FEW > 0:
        expert, pair, row, there, any_there = _rows_few(ids, pairs, block, EXPERTS, FEW, BLOCK_M)
        return tile, expert, pair, row, there, any_there, 0, 0, 0
    else:
        expert, begin, first, stop = _block_sorted(offsets, block, EXPERTS, WIDTH, BLOCK_M, TAIL)
        pair, row, there = _rows_from(order, begin, first, stop, BLOCK_M)
        return tile, expert, pair, row, there, first < stop, begin, first, stop


@triton.jit
def _activate(gate, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    # GELU by its tanh approximation, written with a sigmoid: (1 + tanh z) / 2 = sigmoid(2 z).
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@triton.jit
def _gate_up_tile(gate, up, out, row, there, n, INNER: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr):
    value = (_activate(gate, ACTIVATION) * up).to(out.dtype.element_ty)
    mask = there[:, None] if INNER % BLOCK_N == 0 else there[:, None] & (n < INNER)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * INNER + n[None, :], value, mask=mask)


@triton.jit
def _load_rows(inputs, start, there, k, LENGTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return a tile of rows of which those of no pair are not read: blocks of few rows would read their first one again and again."""
    if LENGTH % BLOCK_K == 0:
        return tl.load(inputs + start, mask=there[:, None], other=0.0)
    else:
        return tl.load(inputs + start, mask=there[:, None] & (k < LENGTH - start)[None, :], other=0.0)


@triton.jit
def _load_columns(weights, start, k, LENGTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return a transposed tile of a weight's rows."""
    if LENGTH % BLOCK_K == 0:
        return tl.load(weights + start)
    else:
        return tl.load(weights + start, mask=(k < LENGTH - start)[:, None], other=0.0)


@kernel
def gate_up(
    x,
    weight,
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
    DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[row] [I] = activation(x[token] gate^T) * (x[token] up^T). weight: [E, 2 I, H], gate first. FEW: 0, or as of `_rows_few`.

    TAIL: how many rows a block has beyond BLOCK_M, which need be no power of two with them; 0 with FEW.
    """
    tiles: tl.constexpr = (INNER + BLOCK_N - 1) // BLOCK_N
    block, tile = _swizzle(tiles, blocks, GROUP)
    if FEW > 0:
        expert, pair, row, there, any_there = _rows_few(ids, pairs, block, EXPERTS, FEW, BLOCK_M)
    else:
        expert, begin, first_row, stop = _block_sorted(offsets, block, EXPERTS, WIDTH, BLOCK_M + TAIL)
        any_there = first_row < stop
        pair, row, there = _rows_from(order, begin, first_row, stop, BLOCK_M)
    if any_there:
        k = tl.arange(0, BLOCK_K)
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inputs = x + (pair // TOP_K).to(tl.int64)[:, None] * x_stride + k[None, :]
        if TAIL > 0:
            tail_pair, tail_row, tail_there = _rows_from(order, begin, first_row + BLOCK_M, stop, TAIL)
            tail_inputs = x + (tail_pair // TOP_K).to(tl.int64)[:, None] * x_stride + k[None, :]
            tail_gate = tl.zeros([TAIL, BLOCK_N], tl.float32)
            tail_up = tl.zeros([TAIL, BLOCK_N], tl.float32)
        if DESCRIBED:
            first = expert * (2 * INNER) + tile * BLOCK_N
        else:
            column = n if INNER % BLOCK_N == 0 else tl.minimum(n, INNER - 1)
            gates = weight + expert.to(tl.int64) * (2 * INNER * HIDDEN) + column[None, :] * HIDDEN + k[:, None]
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, HIDDEN, BLOCK_K):
            a = _load_rows(inputs, start, there, k, HIDDEN, BLOCK_K)
            if DESCRIBED:
                b = weight.load([first, start]).T
                c = weight.load([first + INNER, start]).T
            else:
                b = _load_columns(gates, start, k, HIDDEN, BLOCK_K)
                c = _load_columns(gates + INNER * HIDDEN, start, k, HIDDEN, BLOCK_K)
            gate = tl.dot(a, b, gate, input_precision="ieee")
            up = tl.dot(a, c, up, input_precision="ieee")
            if TAIL > 0:
                d = _load_rows(tail_inputs, start, tail_there, k, HIDDEN, BLOCK_K)
                tail_gate = tl.dot(d, b, tail_gate, input_precision="ieee")
                tail_up = tl.dot(d, c, tail_up, input_precision="ieee")
        _gate_up_tile(gate, up, out, row, there, n, INNER, ACTIVATION, BLOCK_N)
        if TAIL > 0:
            _gate_up_tile(tail_gate, tail_up, out, tail_row, tail_there, n, INNER, ACTIVATION, BLOCK_N)


@triton.jit
def _down_tile(total, scales, out, pair, there, n, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr):
    scale = tl.load(scales + pair, mask=there, other=0.0).to(tl.float32)
    value = (total * scale[:, None]).to(out.dtype.element_ty)
    mask = there[:, None] if HIDDEN % BLOCK_N == 0 else there[:, None] & (n < HIDDEN)[None, :]
    tl.store(out + pair.to(tl.int64)[:, None] * HIDDEN + n[None, :], value, mask=mask)


@kernel
def down(
    act,
    tiled,
    weight,
    ids,
    order,
    offsets,
    scales,
    out,
    pairs,
    blocks,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    FEW: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[pair] [H] = scales[pair] * act[row] weight^T. weight: [E, H, I]. act: the rows that `gate_up` wrote; tiled: its descriptor."""
    tiles: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    block, tile = _swizzle(tiles, blocks, GROUP)
    if FEW > 0:
        expert, pair, row, there, any_there = _rows_few(ids, pairs, block, EXPERTS, FEW, BLOCK_M)
    else:
        expert, begin, first_row, stop = _block_sorted(offsets, block, EXPERTS, WIDTH, BLOCK_M + TAIL)
        any_there = first_row < stop
        pair, row, there = _rows_from(order, begin, first_row, stop, BLOCK_M)
    if any_there:
        k = tl.arange(0, BLOCK_K)
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inputs = act + row.to(tl.int64)[:, None] * INNER + k[None, :]
        if TAIL > 0:
            tail_pair, tail_row, tail_there = _rows_from(order, begin, first_row + BLOCK_M, stop, TAIL)
            tail_inputs = act + tail_row.to(tl.int64)[:, None] * INNER + k[None, :]
            tail_total = tl.zeros([TAIL, BLOCK_N], tl.float32)
        if DESCRIBED:
            first = expert * HIDDEN + tile * BLOCK_N
        else:
            column = n if HIDDEN % BLOCK_N == 0 else tl.minimum(n, HIDDEN - 1)
            weights = weight + expert.to(tl.int64) * (HIDDEN * INNER) + column[None, :] * INNER + k[:, None]
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, INNER, BLOCK_K):
            if DESCRIBED:
                b = weight.load([first, start]).T
            else:
                b = _load_columns(weights, start, k, INNER, BLOCK_K)
            if DESCRIBED and FEW == 0:
                a = tiled.load([first_row, start])
            else:
                a = _load_rows(inputs, start, there, k, INNER, BLOCK_K)
            total = tl.dot(a, b, total, input_precision="ieee")
            if TAIL > 0:
                d = _load_rows(tail_inputs, start, tail_there, k, INNER, BLOCK_K)
                tail_total = tl.dot(d, b, tail_total, input_precision="ieee")
        _down_tile(total, scales, out, pair, there, n, HIDDEN, BLOCK_N)
        if TAIL > 0:
            _down_tile(tail_total, scales, out, tail_pair, tail_there, n, HIDDEN, BLOCK_N)


@kernel
def combine(parts, ids, out, HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """out[t] = the sum of parts[t, k] over k whose id is an expert, in float32 and in the order of k. parts: [T, K, H]."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(TOP_K):
        expert = tl.load(ids + token * TOP_K + k)
        known = (expert >= 0) & (expert < EXPERTS)
        part = tl.load(parts + (token * TOP_K + k) * HIDDEN + column, mask=known & (column < HIDDEN), other=0.0)
        total += part.to(tl.float32)
    tl.store(out + token * HIDDEN + column, total.to(out.dtype.element_ty), mask=column < HIDDEN)
