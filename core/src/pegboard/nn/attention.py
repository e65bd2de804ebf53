from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pegboard.nn.layer import Layer
from pegboard.nn.linear import Linear, LinearGroup, late_bias
from pegboard.nn.norm import RMSNorm
from pegboard.types import AttentionSpec, HeadNorms

if TYPE_CHECKING:
    from pegboard.interfaces.attention import AttentionBackend
    from pegboard.types import ForwardContext


class Attention(Layer):
    """Multi-head attention with grouped keys and values, rotary positions and optional norms on queries and keys.

    spec: what the layer computes. rope: index of its rotary table in `ForwardContext.rope`.
    qk_norm_eps: epsilon of an RMS norm over each head of q and k before the rotation; None for no norm. norm: its kind.
    whole_norm: that norm is over all heads together. clip: largest magnitude of q, k and v behind the norm; None for any.
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
        whole_norm: bool = False,
        clip: float | None = None,
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
        self.whole_norm, self.clip = whole_norm, clip
        widths = [spec.head_dim * (heads if whole_norm else 1) for heads in (spec.num_heads, spec.num_kv_heads)]
        self.q_norm = None if qk_norm_eps is None else norm(widths[0], qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else norm(widths[1], qk_norm_eps)
        self.qkv = LinearGroup(self, tuple(layers))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, H] -> [T, H]; of each rank's rows where the sequence is split."""
        if self.region is not None:
            x = self.region.enter(x, ctx.positions.shape[-1])
        return self._of_projected(self.qkv(x, ctx), ctx)

    def behind(self, norm: RMSNorm, x: Tensor, residual: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor]:
        """Return (forward(norm(x + residual)), x + residual)."""
        if self.region is not None:
            normed, total = norm.add(x, residual)
            return self(normed, ctx), total
        projected, total = self.qkv.behind(norm, x, residual, ctx)
        return self._of_projected(projected, ctx), total

    def _of_projected(self, projected: Tensor, ctx: ForwardContext) -> Tensor:
        """Return what `forward` does, of what q, k and v gave."""
        spec = self.spec
        heads, kv_heads = spec.num_heads, spec.num_kv_heads
        if self.clip is not None or self.whole_norm:
            projected = self._bounded(projected)
        qkv = projected.view(-1, heads + 2 * kv_heads, spec.head_dim)
        cos, sin = ctx.rope[self.rope]
        plan = ctx.plans[spec.group]
        attended = self.backend.attend_qkv(qkv, cos, sin, self._norms(), spec, plan, ctx.cache)
        if attended is None:
            attended = self.backend.attend(*self._turned(qkv, cos, sin), spec, plan, ctx.cache)
        out: Tensor = self.o_proj(attended.reshape(-1, heads * spec.head_dim), ctx)
        return out if self.region is None else self.region.leave(out, late_bias(self.o_proj))

    def _norms(self) -> HeadNorms | None:
        if self.whole_norm or self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, self.q_norm.offset)

    def _turned(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q [T, num_heads, head_dim], k and v [T, num_kv_heads, head_dim] of [T, all of them, head_dim], positions applied."""
        heads, kv_heads = self.spec.num_heads, self.spec.num_kv_heads
        # Split, not sliced: the gradients of the parts are joined in one copy, in the place of a sum of padded ones.
        if self.q_norm is None or self.k_norm is None or self.whole_norm:
            # q and k lie side by side, so one rotation serves both.
            qk, v = qkv.split([heads + kv_heads, kv_heads], 1)
            q, k = self.kernels.rotary(qk, cos, sin).split([heads, kv_heads], 1)
        else:
            q, k, v = qkv.split([heads, kv_heads, kv_heads], 1)
            q = self.kernels.rotary(self.q_norm(q), cos, sin)
            k = self.kernels.rotary(self.k_norm(k), cos, sin)
        return q, k, v

    def _bounded(self, qkv: Tensor) -> Tensor:
        """[T, all heads side by side] -> the same, q and k normed over their whole width where that is asked for, all clipped."""
        if self.whole_norm and self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm.weight.shape[0], self.k_norm.weight.shape[0]
            q, k, v = qkv.split([queries, keys, qkv.shape[-1] - queries - keys], -1)
            qkv = torch.cat((self.q_norm(q), self.k_norm(k), v), -1)
        return qkv if self.clip is None else qkv.clamp(-self.clip, self.clip)
