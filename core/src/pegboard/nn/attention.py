from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pegboard.nn.layer import Layer
from pegboard.nn.linear import Linear, LinearGroup, late_bias
from pegboard.nn.norm import RMSNorm
from pegboard.types import AttentionSpec

if TYPE_CHECKING:
    from pegboard.interfaces.attention import AttentionBackend
    from pegboard.types import ForwardContext


class Attention(Layer):
    """Multi-head attention with grouped keys and values, rotary positions and optional norms on queries and keys.

    spec: what the layer computes. rope: index of its rotary table in `ForwardContext.rope`.
    qk_norm_eps: epsilon of an RMS norm over each head of q and k before the rotation; None for no norm. norm: its kind.
    fused: q, k and v are one layer, `qkv_proj`, where checkpoints have them so.
    """

    backend: AttentionBackend

    def __init__(
        self,
        hidden_size: int,
        spec: AttentionSpec,
        *,
        bias: bool = False,
        out_bias: bool = False,
        qk_norm_eps: float | None = None,
        norm: type[RMSNorm] = RMSNorm,
        fused: bool = False,
        rope: int = 0,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.rope = rope
        heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads, "v_proj": spec.num_kv_heads}
        layers = {"qkv_proj": sum(heads.values())} if fused else heads
        for name, count in layers.items():
            self.add_module(name, Linear(hidden_size, count * spec.head_dim, bias))
        self.o_proj = Linear(spec.num_heads * spec.head_dim, hidden_size, out_bias)
        self.q_norm = None if qk_norm_eps is None else norm(spec.head_dim, qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else norm(spec.head_dim, qk_norm_eps)
        self.qkv = LinearGroup(self, tuple(layers))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, H] -> [T, H]; of each rank's rows where the sequence is split."""
        spec = self.spec
        if self.region is not None:
            x = self.region.enter(x, ctx.positions.shape[-1])
        heads, kv_heads = spec.num_heads, spec.num_kv_heads
        qkv = self.qkv(x, ctx).view(-1, heads + 2 * kv_heads, spec.head_dim)
        cos, sin = ctx.rope[self.rope]
        v = qkv[:, heads + kv_heads :]
        if self.q_norm is None or self.k_norm is None:
            # q and k lie side by side, so one rotation serves both.
            qk = self.kernels.rotary(qkv[:, : heads + kv_heads], cos, sin)
            q, k = qk[:, :heads], qk[:, heads:]
        else:
            q = self.kernels.rotary(self.q_norm(qkv[:, :heads]), cos, sin)
            k = self.kernels.rotary(self.k_norm(qkv[:, heads : heads + kv_heads]), cos, sin)
        attended = self.backend.attend(q, k, v, spec, ctx.plans[spec.group], ctx.cache)
        out: Tensor = self.o_proj(attended.reshape(-1, heads * spec.head_dim), ctx)
        return out if self.region is None else self.region.leave(out, late_bias(self.o_proj))
