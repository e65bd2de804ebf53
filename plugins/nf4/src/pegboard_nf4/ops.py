"""The product with NF4 weights, as an op that a platform may replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pegboard.ops import register
from pegboard_nf4.matrix import Nf4Matrix

_PIECE = 1 << 23
"""Weights that are dequantised at once: what stands in full precision at any time."""


class _Product(torch.autograd.Function):
    """x @ W.T that keeps nothing but the 4-bit weight, which is there anyway: the backward pass dequantises it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Nf4Matrix, linear: Callable[..., Tensor]) -> Tensor:
        ctx.weight, ctx.linear = weight, linear
        return forward(x, weight, linear)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return backward(grads[0], ctx.weight, ctx.linear), None, None


@register(
    "nf4_linear", "(x [T, K], weight Nf4Matrix of shape [N, K], bias [N] | None, linear: the op of that name) -> [T, N]"
)
def nf4_linear(x: Tensor, weight: Nf4Matrix, bias: Tensor | None, linear: Callable[..., Tensor]) -> Tensor:
    """x @ dequantised(weight).T + bias in x's dtype, a piece of the weight at a time. Differentiable in x and bias."""
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _Product.apply(x, weight, linear)
    else:
        out = forward(x, weight, linear)
    return out if bias is None else out + bias


def forward(x: Tensor, weight: Nf4Matrix, linear: Callable[..., Tensor]) -> Tensor:
    """[T, K] x a weight [N, K] -> [T, N]."""
    parts = [linear(x, part, None) for _, part in _pieces(weight, x.dtype)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def backward(grad: Tensor, weight: Nf4Matrix, linear: Callable[..., Tensor]) -> Tensor:
    """[T, N], the gradient of what `forward` gave -> that of its x, [T, K]."""
    total: Tensor | None = None
    for rows, part in _pieces(weight, grad.dtype):
        product = linear(grad[:, rows], part.t(), None)
        total = product if total is None else total.add_(product)
    assert total is not None
    return total


def _pieces(weight: Nf4Matrix, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield a few rows of the weight at a time, dequantised, and which they are."""
    count, columns = weight.shape
    step = max(_PIECE // columns // weight.unit, 1) * weight.unit
    scales = weight.plain_scales()
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield slice(start, stop), weight.rows(start, stop, dtype, scales)


@register("nf4_values", "(weight Nf4Matrix of shape [N, K], dtype) -> the weight in full, [N, K]")
def nf4_values(weight: Nf4Matrix, dtype: torch.dtype) -> Tensor:
    return weight.dequantise(dtype)
