from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from pegboard.nn.layer import Layer
from pegboard.nn.linear import Linear, LinearGroup, late_bias
from pegboard.ops import replaced

if TYPE_CHECKING:
    from pegboard.nn.norm import RMSNorm
    from pegboard.types import ForwardContext


class GatedMLP(Layer):
    """down(activation(gate(x)) * up(x)) (arXiv:2002.05202).

    activation: "silu" (SwiGLU) or "gelu_tanh" (GeGLU with GELU's tanh approximation).
    fused: gate and up are one layer, `gate_up_proj`, gate first, where checkpoints have them so.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        bias: bool = False,
        *,
        activation: Literal["silu", "gelu_tanh"] = "silu",
        fused: bool = False,
    ) -> None:
        super().__init__()
        self._activation, self._gated = activation, f"{activation}_mul"
        if fused:
            self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, bias)
        else:
            self.gate_proj = Linear(hidden_size, intermediate_size, bias)
            self.up_proj = Linear(hidden_size, intermediate_size, bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias)
        self.gate_up = LinearGroup(self, ("gate_up_proj",) if fused else ("gate_proj", "up_proj"))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, H] -> [T, H]; of each rank's rows where the sequence is split."""
        if self.region is not None:
            x = self.region.enter(x, ctx.positions.shape[-1])
        out = self._down(self.gate_up(x, ctx), ctx)
        return out if self.region is None else self.region.leave(out, late_bias(self.down_proj))

    def behind(self, norm: RMSNorm, x: Tensor, residual: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor]:
        """Return (forward(norm(x + residual)), x + residual)."""
        if self.region is not None:
            normed, total = norm.add(x, residual)
            return self(normed, ctx), total
        inner, total = self.gate_up.behind(norm, x, residual, ctx)
        return self._down(inner, ctx), total

    def _down(self, inner: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, 2 I] -> [T, H]."""
        down: Any = self.down_proj
        if type(down) is Linear and replaced(self.kernels, "gated_linear"):
            bias = None if down.late_bias else down.bias
            out: Tensor = self.kernels.gated_linear(inner, down.weight, bias, self._activation)
            return out
        out = down(getattr(self.kernels, self._gated)(inner), ctx)
        return out
