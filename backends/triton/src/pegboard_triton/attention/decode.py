"""Few queries over many keys: a sequence's keys are cut into chunks that different programs read (arXiv:2307.08691, section 3.3, for
the merge of partial softmaxes; a chunk of keys serves all query heads that share it).

The programs of one sequence count themselves; the last one to end merges what all of them found. It reads their parts in the order of
the keys, so that the result does not depend on which one it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.attention.cells import kind, put, raw, row_scale, turned, widened
from pegboard_triton.attention.early import early, gdc_launch_dependents, gdc_wait
from pegboard_triton.kernel import kernel
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.types import AttentionSpec, HeadNorms
    from pegboard_triton.attention.plan import CachedPlan

LOG2E = 1.4426950408889634


@triton.jit
def capped(x, softcap):
    """Return softcap * tanh(x / softcap)."""
    return softcap * (1.0 - 2.0 / (tl.exp2(x * (2.8853900817779268 / softcap)) + 1.0))


@kernel
def decode_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    out,
    parts,
    sums,
    counters,
    items,
    pages,
    slots,
    cos,
    sin,
    q_weight,
    k_weight,
    eps,
    offset,
    scale,
    softcap,
    window,
    q_stride,
    q_head,
    page_stride,
    head_stride,
    slot_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KIND: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TURNED: tl.constexpr,
    NORMED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (h, i): key head h of item i, which is a chunk of the keys of a sequence, or nothing where its sequence is -1.

    items: int32 [items, 8], see `plan.ITEM`. EARLY: this may begin before the kernel in front of it has ended, which wrote q and cells.
    TURNED: 0 where q is normed and turned and the new keys and values are in the cache; else q is what the projection gave, [T, heads + 2 *
    kv_heads, HEAD_DIM], all that is done here, and the program whose chunk a new token falls into writes its key and value.
    q: [T, heads, HEAD_DIM]. out: the same, contiguous. parts: float32 [items, kv_heads, GROUP * QUERIES, HEAD_DIM]. sums: the same without
    HEAD_DIM, logarithms of base 2. counters: int32 [N, kv_heads], zero before and after. QUERIES: most new tokens of a sequence.
    """
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    item = tl.program_id(1)
    # One line of memory says all: loads that wait for one another would be most of a short sequence's time.
    seq = tl.load(items + item * 8)
    chunk = tl.load(items + item * 8 + 1)
    size = tl.load(items + item * 8 + 2)
    length = tl.load(items + item * 8 + 3)
    begin = tl.load(items + item * 8 + 4)
    queries = tl.load(items + item * 8 + 5)
    table = pages + tl.load(items + item * 8 + 6)
    if seq < 0:
        return
    first = 0
    if WINDOWED:
        first = tl.maximum(length - queries + 1 - window, 0)
    first_chunk = first // size
    count = (length + size - 1) // size - first_chunk
    if chunk < first_chunk:
        return

    rows = tl.arange(0, BLOCK_M)
    token = rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, BLOCK_D)
    real = dims < HEAD_DIM
    asked = token < queries
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = (begin + token).to(tl.int64)
    if TURNED == 0:
        block_q = tl.load(
            q + row[:, None] * q_stride + head[:, None] * q_head + dims[None, :],
            mask=asked[:, None] & real[None, :],
            other=0.0,
        )
    else:
        block_q = turned(
            q + row * q_stride + head * q_head,
            row,
            asked,
            cos,
            sin,
            q_weight,
            eps,
            offset,
            HEAD_DIM,
            TURNED,
            NORMED,
            BLOCK_D,
        ).to(q.dtype.element_ty)
        if (chunk + 1) * size > length - queries:
            new = tl.arange(0, BLOCK_Q)
            where = length - queries + new
            mine = (new < queries) & (where // size == chunk)
            row_new = (begin + new).to(tl.int64)
            slot = tl.load(slots + row_new, mask=mine, other=0).to(tl.int64)
            cell = slot // PAGE * page_stride + slot % PAGE * slot_stride + kv_head.to(tl.int64) * head_stride
            rows_k = q + row_new * q_stride + (kv_heads * GROUP + kv_head) * q_head
            new_k = turned(rows_k, row_new, mine, cos, sin, k_weight, eps, offset, HEAD_DIM, TURNED, NORMED, BLOCK_D)
            put(keys, key_scales, cell, new_k, mine, HEAD_DIM, KIND, BLOCK_D)
            rows_v = rows_k + kv_heads * q_head
            new_v = tl.load(rows_v[:, None] + dims[None, :], mask=mine[:, None] & real[None, :], other=0.0)
            put(values, value_scales, cell, new_v.to(tl.float32), mine, HEAD_DIM, KIND, BLOCK_D)
            # What the loop below reads was written by other threads of this program.
            tl.debug_barrier()
    position = length - queries + token
    low = tl.maximum(chunk * size, first // BLOCK_N * BLOCK_N)
    high = tl.minimum((chunk + 1) * size, length)
    place = kv_head.to(tl.int64) * head_stride

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(low, high, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        inside = key < high
        page = tl.load(table + key // PAGE, mask=inside, other=0).to(tl.int64)
        at = page * page_stride + place + (key % PAGE) * slot_stride
        cells = at[:, None] + dims[None, :]
        mask = inside[:, None] & real[None, :]
        block_k = tl.load(keys + cells, mask=mask, other=0)
        block_v = tl.load(values + cells, mask=mask, other=0)
        block_k = widened(block_k, q.dtype.element_ty, KIND)
        block_v = widened(block_v, q.dtype.element_ty, KIND)
        scores = tl.dot(block_q, tl.trans(block_k), input_precision="ieee") * scale
        if KIND != 0:
            scores *= row_scale(tl.load(key_scales + at // HEAD_DIM, mask=inside, other=0.0), KIND)[None, :]
        if CAPPED:
            scores = capped(scores, softcap)
        seen = inside[None, :] & (key[None, :] <= position[:, None])
        if WINDOWED:
            seen &= key[None, :] > position[:, None] - window
        scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        # A row that has seen no key yet: anything finite in place of minus infinity, whose difference to itself is NaN.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - base[:, None])
        kept = tl.exp2(largest - base)
        total = total * kept + tl.sum(weights, axis=1)
        if KIND != 0:
            weights *= row_scale(tl.load(value_scales + at // HEAD_DIM, mask=inside, other=0.0), KIND)[None, :]
        acc = acc * kept[:, None]
        acc = tl.dot(weights.to(block_v.dtype), block_v, acc, input_precision="ieee")
        largest = larger

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    if count == 1:
        tl.store(
            out + ((begin + token).to(tl.int64) * (kv_heads * GROUP) + head)[:, None] * HEAD_DIM + dims[None, :],
            acc.to(out.dtype.element_ty),
            mask=asked[:, None] & real[None, :],
        )
        return

    ROWS: tl.constexpr = GROUP * QUERIES
    mine = (item * kv_heads + kv_head).to(tl.int64) * ROWS
    tl.store(parts + (mine + rows)[:, None] * HEAD_DIM + dims[None, :], acc, mask=asked[:, None] & real[None, :])
    tl.store(sums + mine + rows, largest + tl.log2(tl.where(total > 0, total, 1.0)), mask=asked)
    tl.debug_barrier()
    ended = tl.atomic_add(counters + seq * kv_heads + kv_head, 1, sem="acq_rel")
    if ended != count - 1:
        return

    tl.store(counters + seq * kv_heads + kv_head, 0)
    merged = tl.arange(0, BLOCK_R)
    there = merged < queries * GROUP
    largest_m = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total_m = tl.zeros([BLOCK_R], tl.float32)
    acc_m = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    first_item = item - chunk + first_chunk
    for part in range(0, count, BLOCK_S):
        which = part + tl.arange(0, BLOCK_S)
        record = ((first_item + which) * kv_heads + kv_head).to(tl.int64)[:, None] * ROWS + merged[None, :]
        known = (which < count)[:, None] & there[None, :]
        logs = tl.load(sums + record, mask=known, other=float("-inf"), cache_modifier=".cg")
        larger_m = tl.maximum(largest_m, tl.max(logs, axis=0))
        base_m = tl.where(larger_m == float("-inf"), 0.0, larger_m)
        share = tl.exp2(logs - base_m[None, :])
        kept_m = tl.exp2(largest_m - base_m)
        found = tl.load(
            parts + record[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=known[:, :, None] & real[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        acc_m = acc_m * kept_m[:, None] + tl.sum(found * share[:, :, None], axis=0)
        total_m = total_m * kept_m + tl.sum(share, axis=0)
        largest_m = larger_m
    result = acc_m / tl.where(total_m > 0, total_m, 1.0)[:, None]
    row_out = (begin + merged // GROUP).to(tl.int64) * (kv_heads * GROUP) + kv_head * GROUP + merged % GROUP
    tl.store(
        out + row_out[:, None] * HEAD_DIM + dims[None, :],
        result.to(out.dtype.element_ty),
        mask=there[:, None] & real[None, :],
    )


def decode(
    q: Tensor,
    cells: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None,
    out: Tensor,
    spec: AttentionSpec,
    plan: CachedPlan,
    turns: tuple[Tensor, Tensor, HeadNorms | None] | None = None,
) -> None:
    """Attend for the sequences of the plan that have few new tokens, into their rows of `out` [T, num_heads, head_dim].

    cells: keys and values of a layer's cache, in the plan's layout, the new ones in it; scales: theirs, where the layout has them.
    turns: (cos, sin, norms) where q is what the projection gave, [T, num_heads + 2 * num_kv_heads, head_dim]: it is normed and turned here,
    and the new keys and values are put into the cache. Not for a plan with sequences of many new tokens.
    """
    group, layout = spec.num_heads // spec.num_kv_heads, plan.layout
    rows = group * plan.most_queries
    block_m = max(16, triton.next_power_of_2(rows))
    block_d, block_r = max(16, triton.next_power_of_2(spec.head_dim)), triton.next_power_of_2(rows)
    sizes = {"rows": block_m, "group": group, "head_dim": spec.head_dim, "bits": 8 * cells[0].element_size()}
    use = choice("attention_decode", q.device, **sizes, sequences=plan.num_sequences)
    parts = torch.empty(plan.num_items, spec.num_kv_heads, rows, spec.head_dim, dtype=torch.float32, device=q.device)
    sums = parts.new_empty(plan.num_items, spec.num_kv_heads, rows)
    strides = dict(zip(layout.order, cells[0].stride(), strict=True))
    cos, sin, norms = turns or (q, q, None)
    weights: Any = (q, q, 0.0, 0.0) if norms is None else (norms.q, norms.k, norms.eps, norms.offset)
    decode_kernel[(spec.num_kv_heads, plan.num_items)](
        q,
        raw(cells[0]),
        raw(cells[1]),
        *(scales or (sums, sums)),
        out,
        parts,
        sums,
        plan.counters,
        plan.items,
        plan.pages,
        plan.slots,
        cos,
        sin,
        *weights,
        spec.scale,
        spec.softcap or 0.0,
        spec.window or 0,
        q.stride(0),
        q.stride(1),
        strides["P"],
        strides["H"],
        strides["S"],
        GROUP=group,
        HEAD_DIM=spec.head_dim,
        PAGE=layout.page_size,
        KIND=kind(cells[0].dtype),
        CAPPED=spec.softcap is not None,
        WINDOWED=spec.window is not None,
        QUERIES=plan.most_queries,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        BLOCK_R=block_r,
        BLOCK_S=max(1, min(16, 4096 // (block_r * block_d))),
        BLOCK_Q=triton.next_power_of_2(plan.most_queries),
        TURNED=0 if turns is None else cos.shape[-1],
        NORMED=norms is not None,
        **early(q.device),
        **use,
    )
