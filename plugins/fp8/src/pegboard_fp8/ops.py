"""Rounding to e4m3, and products with such weights, as ops that a platform may replace.

e4m3 (arXiv:2209.05433): a sign, 4 bits of exponent, 3 of mantissa; magnitudes up to 448, no infinities.
A block of `block` rows and columns shares a scale, those at the ends of a matrix what is left; `block` None is the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.nn.experts import by_expert
from pegboard.nn.grouped import one_operation
from pegboard.ops import register

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max


def scale_shape(rows: int, columns: int, block: int | None) -> tuple[int, int]:
    """Return how many scales a matrix has, by rows and columns of blocks."""
    return (1, 1) if block is None else (-(-rows // block), -(-columns // block))


def quantise(weight: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    """[N, K] of any floating dtype -> (e4m3 [N, K], float32 scales of `scale_shape`): the largest magnitude of a block becomes 448."""
    wide = weight.to(torch.float32)
    rows, columns = wide.shape
    high, across = scale_shape(rows, columns, block)
    size = (rows, columns) if block is None else (block, block)
    padded = F.pad(wide, (0, across * size[1] - columns, 0, high * size[0] - rows))
    largest = padded.view(high, size[0], across, size[1]).abs().amax((1, 3))
    scales = torch.where(largest == 0, 1.0, largest / LARGEST)
    return (wide / spread(scales, rows, columns, block)).clamp_(-LARGEST, LARGEST).to(E4M3), scales


def spread(scales: Tensor, rows: int, columns: int, block: int | None) -> Tensor:
    """Return the scale of each weight, [rows, columns], or what broadcasts to it."""
    if block is None:
        return scales
    return scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]


def dequantise(weight: Tensor, scales: Tensor, block: int | None, dtype: torch.dtype) -> Tensor:
    """Return e4m3 [N, K] times its scales, rounded once to `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    return weight.to(wide).mul_(spread(scales, weight.shape[0], weight.shape[1], block)).to(dtype)


class _Product(torch.autograd.Function):
    """x @ W.T that keeps x and no dequantised weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, block: int | None, linear: Callable[..., Tensor]
    ) -> Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.block, ctx.linear = block, linear
        return linear(x, dequantise(weight, scales, block, x.dtype), None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, scales = ctx.saved_tensors
        plain = dequantise(weight, scales, ctx.block, grads[0].dtype)
        return ctx.linear(grads[0], plain.t(), None), None, None, None, None


@register(
    "fp8_linear",
    "(x [T, K], weight [N, K] e4m3, scales float32 [N / block, K / block] rounded up, block or None for one scale, bias [N] | None, "
    "linear: the op of that name) -> [T, N]",
)
def fp8_linear(
    x: Tensor, weight: Tensor, scales: Tensor, block: int | None, bias: Tensor | None, linear: Callable[..., Tensor]
) -> Tensor:
    """x @ dequantised(weight).T + bias in x's dtype. Differentiable in x and bias."""
    out: Tensor = _Product.apply(x, weight, scales, block, linear)
    return out if bias is None else out + bias


@register(
    "fp8_moe",
    "(gate_up [E, 2 I, H] e4m3, gate_up_scales float32 [E, 2 rows of blocks, blocks], gate's first, down [E, H, I] e4m3, down_scales [E, "
    "rows of blocks, blocks], block or None for one scale a matrix, x, ids, weights, activation: as of op `moe`) -> [T, H]",
)
@one_operation(
    "fp8_moe(Tensor gate_up, Tensor gate_up_scales, Tensor down, Tensor down_scales, int? block, Tensor x, Tensor ids, Tensor weights, "
    'str activation="silu") -> Tensor'
)
def fp8_moe(
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    block: int | None,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    activation: str = "silu",
) -> Tensor:
    """Op `moe` with e4m3 weights; each expert that a row uses is read once. Differentiable in x and weights."""

    def both(rows: Tensor, expert: int) -> Tensor:
        halves = zip(gate_up[expert].chunk(2), gate_up_scales[expert].chunk(2), strict=True)
        return torch.cat([fp8_linear(rows, weight, scales, block, None, F.linear) for weight, scales in halves], -1)

    def back(rows: Tensor, expert: int) -> Tensor:
        return fp8_linear(rows, down[expert], down_scales[expert], block, None, F.linear)

    return by_expert(x, ids, weights, activation, both, back, len(down))
