"""Experts of a mixture in 4 bits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.nn.experts import ExpertGroup, QuantisedExperts, by_expert
from pegboard.nn.grouped import one_operation
from pegboard.ops import KernelTable, kernel_table, register
from pegboard_int4.layers import Int4Linear
from pegboard_int4.rounding import round_tokens
from pegboard_int4.stored import dequantise


@register(
    "int4_moe",
    "(gate_up [E, 2 I, H / 8] int32, gate_up_scales [E, 2 I, H / group] float32, down [E, H, I / 8] int32, down_scales [E, H, I / group] "
    "float32, rounded: inputs of each product to 8 bits by token, x, ids, weights, activation: as of op `moe`) -> [T, H]",
)
@one_operation(
    "int4_moe(Tensor gate_up, Tensor gate_up_scales, Tensor down, Tensor down_scales, bool rounded, Tensor x, Tensor ids, Tensor weights, "
    'str activation="silu") -> Tensor'
)
def int4_moe(
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    rounded: bool,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    activation: str = "silu",
) -> Tensor:
    """Op `moe` with 4-bit weights in groups; each expert that a row uses is read once. Has no gradient."""

    def product(rows: Tensor, words: Tensor, scales: Tensor) -> Tensor:
        return F.linear(round_tokens(rows)[0] if rounded else rows, dequantise(words, scales, rows.dtype))

    return by_expert(
        x,
        ids,
        weights,
        activation,
        lambda rows, expert: product(rows, gate_up[expert], gate_up_scales[expert]),
        lambda rows, expert: product(rows, down[expert], down_scales[expert]),
        len(down),
    )


class Int4Experts(QuantisedExperts):
    """The layers of all experts, their packed weights in one storage and their scales in another."""

    kernels: KernelTable = kernel_table()
    kind = Int4Linear
    stored = ("weight", "scales")

    def joint(self, down: ExpertGroup, x: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor | None:
        # Layers by themselves have gradients, of rounded inputs too.
        return None if torch.is_grad_enabled() else super().joint(down, x, ids, weights, activation)

    def op(self, *values: Any) -> Tensor:
        held = 2 * len(self.stored)
        out: Tensor = self.kernels.int4_moe(*values[:held], self._flat[0].activations, *values[held:])
        return out
