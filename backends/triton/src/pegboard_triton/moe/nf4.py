"""Experts in NF4, as pegboard-nf4 holds them: for products of their codes, and all of them widened for the products of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pegboard_triton.moe.packed_forward import Experts
from pegboard_triton.operators import INTERPRETED, TYPES, on
from pegboard_triton.quantized.packed import NF4, dynamic_values
from pegboard_triton.quantized.widen import widen_matrices

_BLOCK, _CODED = 64, 256
"""Weights that share a scale, and scales that share one."""


def nf4_experts(
    codes: Tensor, scales: Tensor, nested: Tensor | None, offset: Tensor | None, columns: int
) -> Experts | None:
    """Return experts of tensors as of op `nf4_moe`; None where a block of weights lies in two rows, or tensors are not whole."""
    if columns < _BLOCK or columns % _BLOCK or not codes.is_contiguous():
        return None
    table = None if nested is None else dynamic_values(codes.device)
    rows = codes.view(len(codes), -1, columns // 2)
    return Experts(NF4, rows, scales, columns, 1, _BLOCK, table, nested, offset, 0 if nested is None else _CODED)


class _Widened(torch.autograd.Function):
    """Rows times the matrices of their experts, which keeps nothing but the codes: the backward pass widens them again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, experts: Experts, parts: int, ends: Tensor, product: Callable[..., Tensor]
    ) -> Tensor:
        ctx.experts, ctx.parts, ctx.product = experts, parts, product
        ctx.save_for_backward(ends)
        out: Tensor = product(x, _widened(experts, parts, x.dtype), ends)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (ends,) = grads[0].contiguous(), ctx.saved_tensors
        full = _widened(ctx.experts, ctx.parts, grad.dtype)
        return ctx.product(grad, full.transpose(1, 2), ends), None, None, None, None


def _widened(experts: Experts, parts: int, dtype: torch.dtype) -> Tensor:
    with on(experts.codes.device):
        return widen_matrices(
            experts.codes, experts.tensors[1:], experts.columns, parts, experts.scaled, experts.coded, dtype
        )


def nf4_grouped(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return op `nf4_grouped` of pegboard-nf4: all weights are widened by one launch, for a product of all experts. fallback: its own."""

    def nf4_grouped(
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        nested: Tensor | None,
        offset: Tensor | None,
        parts: int,
        ends: Tensor,
        grouped_linear: Callable[..., Tensor],
    ) -> Tensor:
        """Op `nf4_grouped`."""
        experts = nf4_experts(codes, scales, nested, offset, x.shape[1])
        here = x.dtype in TYPES and (INTERPRETED or x.device.type != "cpu")
        if experts is None or not here or not experts.fits():
            return fallback(x, codes, scales, nested, offset, parts, ends, grouped_linear)
        out: Tensor = _Widened.apply(x, experts, parts, ends, grouped_linear)
        return out

    return nf4_grouped
