"""Losses of policy and value, as formulae."""

from __future__ import annotations

import torch
from torch import Tensor

STEEPEST = 20.0
"""Largest difference of log-probabilities that is put into an exponential: beyond it a ratio is as good as infinite."""


def clipped_policy(logps: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Return max(-r A, -clip(r, 1 ± ε) A), eq. 7 of arXiv:1707.06347, and whether the clip decides, both [M]."""
    ratios = (logps - old).clamp(-STEEPEST, STEEPEST).exp()
    free, clipped = -advantages * ratios, -advantages * ratios.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, clipped), clipped > free


def clipped_value(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Return half the squared error of values, or of values that moved no further than `clip` where that is larger, and whether it
    is, both [M].
    """
    free = (values - returns) ** 2
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    held = (old + (values - old).clamp(-clip, clip) - returns) ** 2
    return torch.maximum(free, held) / 2, held > free
