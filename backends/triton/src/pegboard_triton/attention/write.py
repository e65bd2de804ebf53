"""New keys and values put into the cache: as they are, or normed and turned on the way, in one pass over what the projection gave."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.attention.cells import kind, put, raw, turned
from pegboard_triton.attention.early import early, gdc_launch_dependents, gdc_wait
from pegboard_triton.kernel import kernel

if TYPE_CHECKING:
    from pegboard.types import AttentionSpec, HeadNorms
    from pegboard_triton.attention.plan import CachedPlan


@kernel
def write_kernel(
    k,
    v,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    kv_heads,
    k_stride,
    k_head,
    v_stride,
    v_head,
    page_stride,
    head_stride,
    slot_stride,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (t, b): block b of the key heads of token t. k, v: [T, kv_heads, HEAD_DIM]. slots: int32 [T]."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dims = tl.arange(0, BLOCK_D)
    there = head < kv_heads
    mask = there[:, None] & (dims < HEAD_DIM)[None, :]
    slot = tl.load(slots + token).to(tl.int64)
    at = slot // PAGE * page_stride + slot % PAGE * slot_stride + head * head_stride
    new_k = tl.load(k + token * k_stride + head[:, None] * k_head + dims[None, :], mask=mask, other=0.0)
    put(keys, key_scales, at, new_k.to(tl.float32), there, HEAD_DIM, KIND, BLOCK_D)
    new_v = tl.load(v + token * v_stride + head[:, None] * v_head + dims[None, :], mask=mask, other=0.0)
    put(values, value_scales, at, new_v.to(tl.float32), there, HEAD_DIM, KIND, BLOCK_D)


@kernel
def prepare_kernel(
    qkv,
    cos,
    sin,
    q_weight,
    k_weight,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    kept,
    slots,
    heads,
    kv_heads,
    eps,
    offset,
    stride,
    page_stride,
    head_stride,
    slot_stride,
    HEAD_DIM: tl.constexpr,
    TURNED: tl.constexpr,
    PAGE: tl.constexpr,
    KIND: tl.constexpr,
    NORMED: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (t, b): block b of the query heads of token t, which go to `q`, or behind those, of its key heads, which go to the cache.

    qkv: [T, heads + 2 * kv_heads, HEAD_DIM]. cos, sin: [T, TURNED], sin with its first half negated. q: [T, heads, HEAD_DIM], contiguous.
    KEPT: keys go to `kept` [T, kv_heads, HEAD_DIM] too.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    blocks = tl.cdiv(heads, BLOCK_H)
    dims = tl.arange(0, BLOCK_D)
    tokens = tl.full([BLOCK_H], 0, tl.int64) + token
    rows = qkv + token * stride
    if block < blocks:
        head = block * BLOCK_H + tl.arange(0, BLOCK_H)
        there = head < heads
        x = turned(
            rows + head * HEAD_DIM, tokens, there, cos, sin, q_weight, eps, offset, HEAD_DIM, TURNED, NORMED, BLOCK_D
        )
        at_q = (token * heads + head)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(q + at_q, x.to(q.dtype.element_ty), mask=there[:, None] & (dims < HEAD_DIM)[None, :])
    else:
        head = (block - blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
        there = head < kv_heads
        slot = tl.load(slots + token).to(tl.int64)
        at = slot // PAGE * page_stride + slot % PAGE * slot_stride + head * head_stride
        keys_at = rows + (heads + head) * HEAD_DIM
        x = turned(keys_at, tokens, there, cos, sin, k_weight, eps, offset, HEAD_DIM, TURNED, NORMED, BLOCK_D)
        put(keys, key_scales, at, x, there, HEAD_DIM, KIND, BLOCK_D)
        if KEPT:
            at_k = (token * kv_heads + head)[:, None] * HEAD_DIM + dims[None, :]
            tl.store(kept + at_k, x.to(kept.dtype.element_ty), mask=there[:, None] & (dims < HEAD_DIM)[None, :])
        values_at = (keys_at + kv_heads * HEAD_DIM)[:, None] + dims[None, :]
        y = tl.load(values_at, mask=there[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        put(values, value_scales, at, y.to(tl.float32), there, HEAD_DIM, KIND, BLOCK_D)


def write(
    k: Tensor, v: Tensor, cells: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor] | None, plan: CachedPlan
) -> None:
    """Put k and v, [T, num_kv_heads, head_dim], at the plan's slots of a layer's cache."""
    heads, dim = k.shape[1:]
    strides = dict(zip(plan.layout.order, cells[0].stride(), strict=True))
    block_d = max(16, triton.next_power_of_2(dim))
    block_h = max(1, min(triton.next_power_of_2(heads), 1024 // block_d))
    write_kernel[(len(k), triton.cdiv(heads, block_h))](
        k,
        v,
        raw(cells[0]),
        raw(cells[1]),
        *(scales or cells),
        plan.slots,
        heads,
        *k.stride()[:2],
        *v.stride()[:2],
        strides["P"],
        strides["H"],
        strides["S"],
        HEAD_DIM=dim,
        PAGE=plan.layout.page_size,
        KIND=kind(cells[0].dtype),
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        num_warps=4,
        **early(cells[0].device),
    )


def prepare(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: HeadNorms | None,
    cells: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None,
    spec: AttentionSpec,
    plan: CachedPlan,
    kept: Tensor | None = None,
) -> Tensor:
    """Norm and turn queries and keys, put keys and values at the plan's slots, and return the queries [T, num_heads, head_dim].

    kept: [T, num_kv_heads, head_dim], contiguous, where keys are put too.
    qkv: [T, num_heads + 2 * num_kv_heads, head_dim], contiguous but for its first dimension. cos, sin: [T, 1, R], contiguous.
    """
    strides = dict(zip(plan.layout.order, cells[0].stride(), strict=True))
    dim = spec.head_dim
    q = torch.empty(len(qkv), spec.num_heads, dim, dtype=qkv.dtype, device=qkv.device)
    block_d = max(16, triton.next_power_of_2(dim))
    block_h = max(1, min(triton.next_power_of_2(spec.num_kv_heads), 1024 // block_d))
    blocks = triton.cdiv(spec.num_heads, block_h) + triton.cdiv(spec.num_kv_heads, block_h)
    prepare_kernel[(len(qkv), blocks)](
        qkv,
        cos,
        sin,
        *((qkv, qkv) if norms is None else (norms.q, norms.k)),
        q,
        raw(cells[0]),
        raw(cells[1]),
        *(scales or cells),
        q if kept is None else kept,
        plan.slots,
        spec.num_heads,
        spec.num_kv_heads,
        0.0 if norms is None else norms.eps,
        0.0 if norms is None else norms.offset,
        qkv.stride(0),
        strides["P"],
        strides["H"],
        strides["S"],
        HEAD_DIM=dim,
        TURNED=cos.shape[-1],
        PAGE=plan.layout.page_size,
        KIND=kind(cells[0].dtype),
        NORMED=norms is not None,
        KEPT=kept is not None,
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        num_warps=4,
        **early(cells[0].device),
    )
    return q
