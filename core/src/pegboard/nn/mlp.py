from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pegboard.nn.layer import Layer
from pegboard.nn.linear import Linear, LinearGroup

if TYPE_CHECKING:
    from pegboard.types import ForwardContext


class GatedMLP(Layer):
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias)
        self.gate_up = LinearGroup(self, ("gate_proj", "up_proj"))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, H] -> [T, H]."""
        out: Tensor = self.down_proj(self.kernels.silu_mul(self.gate_up(x, ctx)), ctx)
        return out
