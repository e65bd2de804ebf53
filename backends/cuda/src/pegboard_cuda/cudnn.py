"""Prompts by torch's scaled_dot_product_attention where it takes cuDNN."""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pegboard.packed import PackedAttention, PackedPlan
from pegboard.types import AttentionSpec

_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
"""In this order: where this cuDNN or this card lacks a shape, torch's other kernel for it computes."""


class CudnnAttention(PackedAttention):
    """Adjacent sequences of one length are one call. cuDNN plans each new number and length of them, which takes its time."""

    label = "cudnn"
    widest = 128

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        if spec.window is not None:
            return "it has no sliding windows"
        if spec.softcap is not None:
            return "it has no soft caps"
        return super().unsupported(spec, dtype)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: PackedPlan) -> Tensor:
        parts, start = [], 0
        with sdpa_kernel(_BACKENDS, set_priority=True):
            for length, alike in groupby(plan.lens):
                count = sum(1 for _ in alike)
                rows = slice(start, start + count * length)
                start = rows.stop
                if length:
                    parts.append(_alike(q[rows], k[rows], v[rows], count, length, spec))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _alike(q: Tensor, k: Tensor, v: Tensor, count: int, length: int, spec: AttentionSpec) -> Tensor:
    """Attend in `count` sequences of `length` tokens, [count * length, heads, D]; no input is copied."""
    q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)
