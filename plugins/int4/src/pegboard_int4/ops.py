"""The product with 4-bit weights, and those weights in full, as ops that a platform may replace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pegboard.ops import register
from pegboard_int4.stored import dequantise


@register(
    "int4_values",
    "(words [N, K / 8] int32, scales [N, K / group] float32, dtype) -> [N, K], each rounded once to dtype",
)
def int4_values(words: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight that words and scales stand for."""
    return dequantise(words, scales, dtype)


@register(
    "int4_linear",
    "(x [T, K], words [N, K / 8] int32, scales [N, K / group] float32, linear: the op of that name) -> [T, N]",
)
def int4_linear(x: Tensor, words: Tensor, scales: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    """x @ W.T in x's dtype. No gradient is asked of it."""
    return linear(x, dequantise(words, scales, x.dtype), None)
