"""The rounding itself, which training, conversion and inference share.

Weights: symmetric, codes -8 … 7, one scale for each `group` weights of a row: their largest magnitude / 7.5.
Inputs: asymmetric, codes -128 … 127, a scale and a zero point for each token, from its smallest and largest value and zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW, HIGH = -8, 7
_TOKEN_LOW, _TOKEN_HIGH = -128, 127
_TINY = torch.finfo(torch.float32).smallest_normal
_SMALLEST_STEP = torch.finfo(torch.float32).eps


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what rounding computes in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def weight_scales(weight: Tensor, group: int) -> Tensor:
    """Return the scales [N, K / group] of a weight [N, K], float32 or wider. K is a multiple of `group`."""
    grouped = weight.to(wide(weight.dtype)).unflatten(1, (-1, group))
    return (grouped.abs().amax(2) / ((HIGH - LOW) / 2)).clamp_(min=_TINY)


def weight_steps(weight: Tensor, scales: Tensor) -> Tensor:
    """Return weight [N, K] in steps of its scales [N, K / group], rounded to integers but not cut to their range; in the scales' dtype."""
    grouped = weight.to(scales.dtype).unflatten(1, (scales.shape[1], -1))
    return (grouped * (1.0 / scales)[:, :, None]).round_().flatten(1)


def weight_values(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes [N, K] of any dtype times scales [N, K / group], rounded once to `dtype`."""
    grouped = codes.to(scales.dtype).unflatten(1, (scales.shape[1], -1))
    return (grouped * scales[:, :, None]).flatten(1).to(dtype)


def round_weight(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return (the weight as its codes stand for it, in its dtype; where a code was not cut, bool), both [N, K]."""
    scales = weight_scales(weight, group)
    steps = weight_steps(weight, scales)
    kept = (steps >= LOW) & (steps <= HIGH)
    return weight_values(steps.clamp_(LOW, HIGH), scales, weight.dtype), kept


def round_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (inputs [T, K] as their 8-bit codes stand for them, in x's dtype; where a code was not cut, bool)."""
    values = x.to(wide(x.dtype))
    low, high = values.amin(-1, keepdim=True).clamp_(max=0), values.amax(-1, keepdim=True).clamp_(min=0)
    scale = ((high - low) / (_TOKEN_HIGH - _TOKEN_LOW)).clamp_(min=_SMALLEST_STEP)
    zero = (_TOKEN_LOW - (low / scale).round_()).clamp_(_TOKEN_LOW, _TOKEN_HIGH)
    steps = (values * (1.0 / scale)).round_().add_(zero)
    kept = (steps >= _TOKEN_LOW) & (steps <= _TOKEN_HIGH)
    return (steps.clamp_(_TOKEN_LOW, _TOKEN_HIGH).sub_(zero) * scale).to(x.dtype), kept
