"""Whole sequences by FlashAttention 4, whose kernels are compiled by the CuTe DSL at their first use."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pegboard.errors import PluginError
from pegboard.packed import PackedAttention, PackedPlan
from pegboard.types import AttentionSpec


class FlashAttn4Attention(PackedAttention):
    """The first batch of a model waits for the compiler: some seconds for each kind of layer."""

    label = "flash-attn-4"
    widest = 128  # what all its generations have in common

    def packed(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: PackedPlan) -> Tensor:
        # Both ends of a window are counted without the query itself.
        window = (None, None) if spec.window is None else (spec.window - 1, 0)
        out: Tensor = _function()(
            q,
            k,
            v,
            cu_seqlens_q=plan.cu_seqlens,
            cu_seqlens_k=plan.cu_seqlens,
            max_seqlen_q=plan.longest,
            max_seqlen_k=plan.longest,
            softmax_scale=spec.scale,
            causal=True,
            window_size=window,
            softcap=spec.softcap or 0.0,
        )[0]
        return out


def _function() -> Any:
    """Return the library's function. Raises PluginError where it cannot be imported."""
    try:
        from flash_attn.cute import flash_attn_varlen_func
    except ImportError as error:
        raise PluginError(
            f"flash-attn-4 cannot be imported: {error}",
            fix="pip install 'pegboard-flash-attn-4[kernels]', for the torch that is here",
        ) from error
    return flash_attn_varlen_func
