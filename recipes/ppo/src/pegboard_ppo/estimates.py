"""Advantages, whitening, and the weight of the divergence, as formulae."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to a variance."""

MOST = 0.2
"""Largest relative error that a step of the weight corrects."""


def generalised_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantage estimates, eq. 16 of arXiv:1506.02438, [N, L].

    rewards, values: [N, L], of the L tokens of each answer, zero behind its last one: nothing is expected after the end.
    """
    advantages = torch.zeros_like(rewards)
    following, after = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        error = rewards[:, t] + gamma * after - values[:, t]
        following = error + gamma * lam * following
        advantages[:, t] = following
        after = values[:, t]
    return advantages


def whiten(values: Tensor, total: Callable[[Tensor], Tensor] = lambda x: x, *, centre: bool = True) -> Tensor:
    """Return values with variance 1 and mean 0, or with their own mean where it is not to be moved. values: [M].

    total: sum over ranks that hold further values; the variance has M - 1 in its denominator.
    """
    count, added = total(torch.stack([values.new_tensor(float(values.numel())), values.sum()])).unbind()
    mean = added / count
    variance = total(((values - mean) ** 2).sum()) / (count - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + EPSILON)
    return whitened if centre else whitened + mean


def steered(weight: float, divergence: float, target: float, answers: int, horizon: int) -> float:
    """Return the weight after answers whose mean divergence was measured: section 2.2 of arXiv:1909.08593.

    It grows where the divergence is above its target, by at most a fifth for each `horizon` answers.
    """
    error = min(max(divergence / target - 1, -MOST), MOST)
    return weight * (1 + error * answers / horizon)
