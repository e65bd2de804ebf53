"""The mixture as one differentiable step. Kept for the backward pass: its inputs and what the gate and up products gave, [P, 2 I].

The rows that experts read and the activations are made again. With d = the output's gradient times down, a pair's row of it, the
gradient of a routing weight is d . act, and that of the activations is weight * d: what down gave is not needed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.nn.grouped import GATED, grouped_linear, grouped_outer
from pegboard_triton import gated
from pegboard_triton.kernel import kernel
from pegboard_triton.moe.grouped import _activate
from pegboard_triton.moe.order import order_pairs
from pegboard_triton.operators import on

_GATED = {**GATED, "silu": gated.silu_mul, "gelu_tanh": gated.gelu_tanh_mul}


@kernel
def spread(
    x,
    order,
    offsets,
    out,
    x_stride,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[row] [WIDTH] = x[token of the pair there]; zeros where no expert has the row."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = row < tl.load(offsets + EXPERTS)
    token = tl.load(order + row, mask=known, other=0) // TOP_K
    value = tl.load(x + token.to(tl.int64) * x_stride + column, mask=known & (column < WIDTH), other=0.0)
    tl.store(out + row.to(tl.int64) * WIDTH + column, value, mask=column < WIDTH)


@kernel
def gather_sum(
    parts,
    places,
    scales,
    out,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t] [WIDTH] = the sum over k of scales[t, k] * parts[places[t, k]], in the order of k; a place below 0 adds nothing."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(TOP_K):
        place = tl.load(places + token * TOP_K + k)
        part = tl.load(parts + place.to(tl.int64) * WIDTH + column, mask=(place >= 0) & (column < WIDTH), other=0.0)
        part = part.to(tl.float32)
        if SCALED:
            part *= tl.load(scales + token * TOP_K + k).to(tl.float32)
        total += part
    tl.store(out + token.to(tl.int64) * WIDTH + column, total.to(out.dtype.element_ty), mask=column < WIDTH)


@kernel
def gated_backward(
    inner,
    grad,
    order,
    offsets,
    scales,
    d_inner,
    act,
    d_scales,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From inner [P, 2 WIDTH] and grad [P, WIDTH], that of the unweighted activations: d_inner, act times weights, d_scales by pair."""
    row = tl.program_id(0)
    if row < tl.load(offsets + EXPERTS):
        pair = tl.load(order + row)
        scale = tl.load(scales + pair).to(tl.float32)
        first = row.to(tl.int64) * WIDTH
        product = tl.zeros([BLOCK], tl.float32)
        for start in range(0, WIDTH, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < WIDTH
            gate = tl.load(inner + 2 * first + column, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(inner + 2 * first + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
            upstream = tl.load(grad + first + column, mask=inside, other=0.0).to(tl.float32)
            active = _activate(gate, ACTIVATION)
            product += upstream * active * up
            if ACTIVATION == "silu":
                turn = tl.sigmoid(gate)
                slope = turn + active * (1.0 - turn)
            else:
                turn = tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
                slope = turn + active * (1.0 - turn) * 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
            kind = act.dtype.element_ty
            tl.store(act + first + column, (scale * active * up).to(kind), mask=inside)
            tl.store(d_inner + 2 * first + column, (scale * upstream * up * slope).to(kind), mask=inside)
            tl.store(d_inner + 2 * first + WIDTH + column, (scale * upstream * active).to(kind), mask=inside)
        tl.store(d_scales + pair, tl.sum(product, 0))


class Mixture(torch.autograd.Function):
    """Op `moe`, differentiable in x, both weights and the routing weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, scales: Tensor, activation: str
    ) -> Tensor:
        ids, scales = ids.contiguous(), scales.contiguous()
        places = torch.full((ids.numel(),), -1, dtype=torch.int32, device=x.device)
        with on(x.device):
            order, offsets = order_pairs(ids, gate_up.shape[0], places)
        inner = grouped_linear(_spread(x, order, offsets, ids.shape[1]), gate_up, offsets[1:])
        out = grouped_linear(_GATED[activation](inner), down, offsets[1:])
        ctx.save_for_backward(x, gate_up, down, scales, order, offsets, places, inner)
        ctx.activation = activation
        return _gather_sum(out, places, scales, x.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_up, down, scales, order, offsets, places, inner = ctx.saved_tensors
        need_x, need_gate_up, need_down, _, need_scales, _ = ctx.needs_input_grad
        ends, top_k = offsets[1:], scales.shape[1]
        rows = _spread(grads[0].contiguous(), order, offsets, top_k)
        d_act = grouped_linear(rows, down.transpose(1, 2), ends)
        d_inner, act = torch.zeros_like(inner), torch.zeros_like(d_act)
        d_scales = torch.zeros(scales.shape, dtype=torch.float32, device=x.device)
        width = d_act.shape[1]
        if len(order):
            with on(x.device):
                gated_backward[(len(order),)](
                    inner,
                    d_act,
                    order,
                    offsets,
                    scales,
                    d_inner,
                    act,
                    d_scales,
                    EXPERTS=len(ends),
                    WIDTH=width,
                    ACTIVATION=ctx.activation,
                    BLOCK=min(triton.next_power_of_2(width), 1024),
                    num_warps=4,
                )
        d_down = grouped_outer(rows, act, ends) if need_down else None
        del rows, act, d_act
        d_x = d_gate_up = None
        if need_x:
            d_x = _gather_sum(grouped_linear(d_inner, gate_up.transpose(1, 2), ends), places, None, x.shape[0], top_k)
        if need_gate_up:
            d_gate_up = grouped_outer(d_inner, _spread(x, order, offsets, top_k), ends)
        return d_x, d_gate_up, d_down, None, d_scales.to(scales.dtype) if need_scales else None, None


def _spread(x: Tensor, order: Tensor, offsets: Tensor, top_k: int) -> Tensor:
    """[T, W] -> [P, W], the row of each pair in the order of experts."""
    width = x.shape[1]
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(len(order), width, dtype=x.dtype, device=x.device)
    block = min(triton.next_power_of_2(width), 1024)
    if len(order):
        with on(x.device):
            spread[(len(order), triton.cdiv(width, block))](
                x,
                order,
                offsets,
                out,
                x.stride(0),
                EXPERTS=len(offsets) - 1,
                TOP_K=top_k,
                WIDTH=width,
                BLOCK=block,
                num_warps=4,
            )
    return out


def _gather_sum(parts: Tensor, places: Tensor, scales: Tensor | None, tokens: int, top_k: int = 0) -> Tensor:
    """[P, W] in the order of experts -> [T, W]."""
    width = parts.shape[1]
    out = torch.empty(tokens, width, dtype=parts.dtype, device=parts.device)
    block = min(triton.next_power_of_2(width), 1024)
    if tokens:
        with on(parts.device):
            gather_sum[(tokens, triton.cdiv(width, block))](
                parts,
                places,
                scales,
                out,
                TOP_K=top_k if scales is None else scales.shape[1],
                WIDTH=width,
                SCALED=scales is not None,
                BLOCK=block,
                num_warps=4,
            )
    return out
