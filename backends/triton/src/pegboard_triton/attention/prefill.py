"""Many queries over many keys: prompts and their chunks over a cached beginning, and whole sequences without a cache.

A program takes a tile of queries with all heads that share a key head as its rows, and walks over the keys (arXiv:2307.08691).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.attention.cells import kind, raw, row_scale, widened
from pegboard_triton.attention.decode import capped
from pegboard_triton.kernel import kernel
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.types import AttentionSpec
    from pegboard_triton.attention.plan import CachedPlan, WholePlan


@triton.jit
def _walk(
    acc,
    total,
    largest,
    block_q,
    position,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    base,
    page_stride,
    slot_stride,
    value_base,
    value_slot,
    low,
    high,
    length,
    scale,
    softcap,
    window,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KIND: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Take in the keys from `low` to `high`. MASKED: some row does not see some of them, or there are fewer than `high`."""
    dims = tl.arange(0, BLOCK_D)
    real = dims < HEAD_DIM
    for start in range(low, high, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        inside = key < length
        if PAGE == 0:
            at = base + key.to(tl.int64) * slot_stride
            value_cells = (value_base + key.to(tl.int64) * value_slot)[:, None] + dims[None, :]
        elif MASKED:
            page = tl.load(table + key // PAGE, mask=inside, other=0).to(tl.int64)
            at = base + page * page_stride + (key % PAGE) * slot_stride
        else:
            at = base + tl.load(table + key // PAGE).to(tl.int64) * page_stride + (key % PAGE) * slot_stride
        cells = at[:, None] + dims[None, :]
        if PAGE != 0:
            value_cells = cells
        if MASKED:
            block_k = tl.load(keys + cells, mask=inside[:, None] & real[None, :], other=0)
        elif HEAD_DIM != BLOCK_D:
            block_k = tl.load(keys + cells, mask=real[None, :], other=0)
        else:
            block_k = tl.load(keys + cells)
        block_k = widened(block_k, block_q.dtype, KIND)
        scores = tl.dot(block_q, tl.trans(block_k), input_precision="ieee")
        if KIND != 0:
            scores *= row_scale(tl.load(key_scales + at // HEAD_DIM, mask=inside, other=0.0), KIND)[None, :]
        factor = scale * 1.4426950408889634
        if CAPPED:
            scores = capped(scores * scale, softcap)
            factor = 1.4426950408889634
        if MASKED:
            seen = inside[None, :] & (key[None, :] <= position[:, None])
            if WINDOWED:
                seen &= key[None, :] > position[:, None] - window
            scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1) * factor)
        zero = larger
        if MASKED:
            # A row that has seen no key yet: minus infinity less itself would be NaN.
            zero = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores * factor - zero[:, None])
        kept = tl.exp2(largest - zero)
        total = total * kept + tl.sum(weights, axis=1)
        acc = acc * kept[:, None]
        if MASKED:
            block_v = tl.load(values + value_cells, mask=inside[:, None] & real[None, :], other=0)
        elif HEAD_DIM != BLOCK_D:
            block_v = tl.load(values + value_cells, mask=real[None, :], other=0)
        else:
            block_v = tl.load(values + value_cells)
        block_v = widened(block_v, block_q.dtype, KIND)
        if KIND != 0:
            weights *= row_scale(tl.load(value_scales + at // HEAD_DIM, mask=inside, other=0.0), KIND)[None, :]
        acc = tl.dot(weights.to(block_v.dtype), block_v, acc, input_precision="ieee")
        largest = larger
    return acc, total, largest


@kernel
def prefill_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    out,
    seq_lens,
    starts,
    page_starts,
    pages,
    tile_seqs,
    tile_firsts,
    scale,
    softcap,
    window,
    q_stride,
    q_head,
    page_stride,
    head_stride,
    slot_stride,
    value_head,
    value_slot,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KIND: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (h, i): key head h of tile i, which is the queries of a sequence from `tile_firsts[i]` on, BLOCK_M // GROUP of them.

    q: [T, heads, HEAD_DIM]. out: the same, contiguous. PAGE: tokens a page; 0 where keys and values are rows of the batch themselves, which
    lie apart as `head_stride` and `slot_stride` say of keys, `value_head` and `value_slot` of values. In a cache both lie alike.
    """
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    tile = tl.program_id(1)
    seq = tl.load(tile_seqs + tile)
    first = tl.load(tile_firsts + tile)
    length = tl.load(seq_lens + seq)
    begin = tl.load(starts + seq)
    queries = tl.load(starts + seq + 1) - begin
    past = length - queries

    TOKENS: tl.constexpr = BLOCK_M // GROUP
    rows = tl.arange(0, BLOCK_M)
    token = first + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, BLOCK_D)
    asked = (token < queries) & (rows < TOKENS * GROUP)
    mask = asked[:, None] & (dims < HEAD_DIM)[None, :]
    row = (begin + token).to(tl.int64)
    block_q = tl.load(q + row[:, None] * q_stride + head[:, None] * q_head + dims[None, :], mask=mask, other=0.0)
    position = past + token
    end = tl.minimum(past + first + TOKENS, length)

    if PAGE == 0:
        table = pages
        base = begin.to(tl.int64) * slot_stride + kv_head * head_stride
        value_base = begin.to(tl.int64) * value_slot + kv_head * value_head
    else:
        table = pages + tl.load(page_starts + seq)
        base = kv_head.to(tl.int64) * head_stride
        value_base = base

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WINDOWED:
        masked_from = tl.maximum(past + first + 1 - window, 0) // BLOCK_N * BLOCK_N
    else:
        # Every row sees the keys up to the tile's first query.
        masked_from = (past + first + 1) // BLOCK_N * BLOCK_N
        acc, total, largest = _walk(
            acc, total, largest, block_q, position, keys, values, key_scales, value_scales, table, base,
            page_stride, slot_stride, value_base, value_slot, 0, masked_from, length, scale, softcap, window,
            HEAD_DIM, PAGE, KIND, CAPPED, WINDOWED, False, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    acc, total, largest = _walk(
        acc, total, largest, block_q, position, keys, values, key_scales, value_scales, table, base,
        page_stride, slot_stride, value_base, value_slot, masked_from, end, length, scale, softcap, window,
        HEAD_DIM, PAGE, KIND, CAPPED, WINDOWED, True, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    place = (row * (kv_heads * GROUP) + head)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)


def prefill(
    q: Tensor,
    cells: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None,
    out: Tensor,
    spec: AttentionSpec,
    plan: CachedPlan | WholePlan,
) -> None:
    """Attend for the sequences of the plan that have many new tokens, into their rows of `out` [T, num_heads, head_dim].

    cells: keys and values of a layer's cache, the new ones in it, or without a cache those of the batch, [T, num_kv_heads, head_dim].
    scales: of the cells, where the cache's layout has them.
    """
    group, layout = spec.num_heads // spec.num_kv_heads, plan.layout
    use = dict(
        choice(
            "attention_prefill",
            q.device,
            group=group,
            head_dim=spec.head_dim,
            width=q.element_size(),
            cell_width=cells[0].element_size(),
            rows=plan.num_tokens * spec.num_heads,
        )
    )
    seqs, firsts = plan.tiles(use["BLOCK_M"] // group)
    if layout is None:
        # Keys come from a rotation, values straight from a projection: their rows need not be equally far apart.
        (k_slot, k_head), (v_slot, v_head) = (x.stride()[:2] for x in cells)
        page, kv_strides = 0, (0, k_head, k_slot, v_head, v_slot)
    else:
        strides = dict(zip(layout.order, cells[0].stride(), strict=True))
        page, kv_strides = layout.page_size, (strides["P"], strides["H"], strides["S"], strides["H"], strides["S"])
    prefill_kernel[(spec.num_kv_heads, len(seqs))](
        q,
        raw(cells[0]),
        raw(cells[1]),
        *(scales or (out, out)),
        out,
        plan.seq_lens,
        plan.starts,
        plan.page_starts,
        plan.pages,
        seqs,
        firsts,
        spec.scale,
        spec.softcap or 0.0,
        spec.window or 0,
        q.stride(0),
        q.stride(1),
        *kv_strides,
        GROUP=group,
        HEAD_DIM=spec.head_dim,
        PAGE=page,
        KIND=kind(cells[0].dtype),
        CAPPED=spec.softcap is not None,
        WINDOWED=spec.window is not None,
        BLOCK_D=max(16, triton.next_power_of_2(spec.head_dim)),
        **use,
    )
