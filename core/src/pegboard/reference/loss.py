"""Losses over the vocabulary, with all logits at once."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logps(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Return log p(target) of each of `rows`, [M] float64.

    hidden: [T, H]. weight: [V, H], the head's. targets: [T] int64. rows: [M] int64.
    """
    probabilities = (hidden.double() @ weight.double().t()).softmax(-1)
    found = [probabilities[int(row), int(targets[row])].log() for row in rows]
    return torch.stack(found) if found else hidden.double().sum(-1)[:0]


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Return the sum over `rows` of -log p(target), a float64 scalar. Arguments as in `token_logps`."""
    return -token_logps(hidden, weight, targets, rows).sum()
