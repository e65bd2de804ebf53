"""Whole sequences by FlashAttention 3 (arXiv:2407.08608), forward only."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pegboard.errors import PluginError
from pegboard.packed import PackedAttention, PackedPlan
from pegboard.types import AttentionSpec


class Fa3Attention(PackedAttention):
    """What it computes depends on how the wheel was built, which the wheel tells: fa3-fwd 0.0.3 has neither float16 nor windows."""

    label = "fa3"
    widest = 256

    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.bfloat16,) if "FP16" in _left_out() else super().dtypes()

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        try:
            left_out = _left_out()
        except PluginError as error:
            return error.message
        if spec.window is not None and "LOCAL" in left_out:
            return "this fa3-fwd is built without sliding windows"
        if spec.softcap is not None and "SOFTCAP" in left_out:
            return "this fa3-fwd is built without soft caps"
        return super().unsupported(spec, dtype)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: PackedPlan) -> Tensor:
        # Both ends of a window are counted without the query itself.
        window = (-1, -1) if spec.window is None else (spec.window - 1, 0)
        out: Tensor = _function()(
            q,
            k,
            v,
            plan.cu_seqlens,
            plan.cu_seqlens,
            plan.longest,
            plan.longest,
            softmax_scale=spec.scale,
            causal=True,
            window_size=window,
            softcap=spec.softcap or 0.0,
        )
        return out


def _function() -> Any:
    """Return the wheel's function. Raises PluginError where it cannot be imported."""
    try:
        from fa3_fwd_interface import flash_attn_varlen_func
    except ImportError as error:
        raise _lacking(error) from error
    return flash_attn_varlen_func


@cache
def _left_out() -> frozenset[str]:
    """Return what the wheel was built without, in the words of its own flags, such as "LOCAL" or "FP16". Raises PluginError without it."""
    try:
        import fa3_fwd_config
    except ImportError as error:
        raise _lacking(error) from error
    flags: Mapping[str, bool] = fa3_fwd_config.CONFIG["build_flags"]
    prefix = "FLASHATTENTION_DISABLE_"
    return frozenset(name.removeprefix(prefix) for name, value in flags.items() if name.startswith(prefix) and value)


def _lacking(error: ImportError) -> PluginError:
    return PluginError(
        f"fa3-fwd cannot be imported: {error}", fix="pip install 'pegboard-fa3[kernels]', for the torch that is here"
    )
