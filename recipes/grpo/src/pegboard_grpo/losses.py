"""Advantages and losses, as formulae."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to a standard deviation, as its authors do."""

STEEPEST = 20.0
"""Largest difference of log-probabilities that is put into an exponential: beyond it a number is as good as infinite."""


def group_advantages(rewards: Tensor) -> Tensor:
    """Return rewards less the mean of their group. rewards: [G, K], K answers to each of G prompts."""
    return rewards - rewards.mean(1, keepdim=True)


def group_deviations(rewards: Tensor) -> Tensor:
    """Return the standard deviation of each group, [G, 1], with K - 1 in the denominator; 0 for groups of one."""
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    return rewards.std(1, keepdim=True)


def clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, below: float, above: float, most: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return -min(r A, clip(r, 1 - below, 1 + above) A), eq. 7 of PPO (arXiv:1707.06347), and whether the clip decides, both [M].

    log_ratios: log r, [M]. advantages: A, [M]. most: a limit of r in the first term, which a negative A lets grow without one.
    """
    ratios = log_ratios.clamp(-STEEPEST, STEEPEST).exp()
    clipped = ratios.clamp(1 - below, 1 + above)
    free = ratios if most is None else ratios.clamp(max=most)
    first, second = free * advantages, clipped * advantages
    return -torch.minimum(first, second), second < first


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Return q/p - log(q/p) - 1 with q the reference, an estimate of KL(p ‖ q) that is never negative (Schulman 2020), [M]."""
    difference = (reference - logps).clamp(-STEEPEST, STEEPEST)
    return difference.exp() - difference - 1
