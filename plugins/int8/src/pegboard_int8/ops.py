"""The product with int8 weights, as an op that a platform may replace, and how weights are rounded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.nn.experts import by_expert
from pegboard.nn.grouped import one_operation
from pegboard.ops import register

_ROWS = 4096
"""Rows that are rounded at once: a float32 copy of a whole embedding would be the peak of loading."""


@register("int8_linear", "(x [T, K], weight [N, K] int8, scales [N] float32, bias [N] | None) -> [T, N]")
def int8_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ (weight * scales).T + bias, in x's dtype, which holds every int8 exactly. Differentiable in x and bias."""
    out = F.linear(x, weight.to(x.dtype)) * scales
    return (out if bias is None else out + bias).to(x.dtype)


@register(
    "int8_moe",
    "(gate_up [E, 2 I, H] int8, gate_up_scales [E, 2 I] float32, down [E, H, I] int8, down_scales [E, H] float32, x, ids, weights, "
    "activation: as of op `moe`) -> [T, H]",
)
@one_operation(
    "int8_moe(Tensor gate_up, Tensor gate_up_scales, Tensor down, Tensor down_scales, Tensor x, Tensor ids, Tensor weights, "
    'str activation="silu") -> Tensor'
)
def int8_moe(
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    activation: str = "silu",
) -> Tensor:
    """Op `moe` with int8 weights; each expert that a row uses is read once. Differentiable in x and weights."""
    return by_expert(
        x,
        ids,
        weights,
        activation,
        lambda rows, expert: int8_linear(rows, gate_up[expert], gate_up_scales[expert]),
        lambda rows, expert: int8_linear(rows, down[expert], down_scales[expert]),
        len(down),
    )


@torch.no_grad()
def quantise_(weight: Tensor, scales: Tensor, source: Tensor) -> bool:
    """Write source [N, K], any floating dtype, as weight [N, K] int8 times scales [N] float32; return whether all was finite.

    A row's largest magnitude becomes 127; a row of zeros gets the scale 1.
    """
    for rows in range(0, source.shape[0], _ROWS):
        part = source[rows : rows + _ROWS].to(weight.device, torch.float32)
        largest = part.abs().amax(1)
        scale = torch.where(largest == 0, 1.0, largest / 127)
        scales[rows : rows + _ROWS] = scale
        weight[rows : rows + _ROWS] = (part / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return bool(scales.isfinite().all())
