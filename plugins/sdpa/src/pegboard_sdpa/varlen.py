"""Sequences of different lengths in one call of torch's own variable-length attention, on devices that have it."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pegboard.types import AttentionSpec

_HALF = (torch.bfloat16, torch.float16)
_WIDEST = 256


def serves(q: Tensor, spec: AttentionSpec) -> bool:
    """Whether it computes such a layer for such queries, [T, num_heads, head_dim]."""
    fits = spec.softcap is None and spec.head_dim % 8 == 0 and spec.head_dim <= _WIDEST and q.dtype in _HALF
    return fits and q.device.type != "cpu" and _works(q.device, q.dtype)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Return causal attention of whole sequences laid end to end, [T, num_heads, head_dim]; differentiable.

    cu_seqlens: [N + 1] int32 on the device, the first row of each sequence and the end. longest: tokens of the longest one.
    """
    function, more = _function()
    window = (-1 if spec.window is None else spec.window - 1, 0)
    out: Tensor = function(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=spec.scale, window_size=window, **more
    )
    return out


@cache
def _function() -> tuple[Any, dict[str, bool]]:
    """Return torch's function, which is younger than other parts of it, and how it is told of heads that share keys."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    return varlen_attn, {"enable_gqa": True} if "enable_gqa" in known else {}


@cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """Try it on one token: torch has the function everywhere, and kernels behind it on some devices."""
    spec = AttentionSpec(0, 1, 1, 64, 1.0)
    x = torch.zeros(1, 1, 64, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            varlen_attention(x, x, x, spec, torch.tensor([0, 1], dtype=torch.int32, device=device), 1)
    except (ImportError, RuntimeError, TypeError):
        return False
    return True
