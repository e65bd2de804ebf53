"""The decoder block of Gemma 2 and 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pegboard.nn import Attention, GatedMLP
from pegboard.nn.layer import Layer
from pegboard.nn.norm import OffsetRMSNorm

if TYPE_CHECKING:
    from pegboard.types import ForwardContext


class SandwichLayer(Layer):
    """A block whose halves are normed before and after (arXiv:2408.00118, table 1): x + norm(attention(norm(x))), then the MLP alike."""

    def __init__(self, attention: Attention, mlp: GatedMLP, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = OffsetRMSNorm(hidden_size, eps)
        self.post_attention_layernorm = OffsetRMSNorm(hidden_size, eps)
        self.pre_feedforward_layernorm = OffsetRMSNorm(hidden_size, eps)
        self.post_feedforward_layernorm = OffsetRMSNorm(hidden_size, eps)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, H] -> [T, H]."""
        attended = self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), ctx))
        normed, x = self.pre_feedforward_layernorm.add(attended, x)
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(normed, ctx))
        return out
