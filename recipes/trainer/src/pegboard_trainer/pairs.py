"""What objectives over pairs of answers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pegboard.errors import DataError
from pegboard.types import Batch


def pair_indices(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the sequences of a batch that are chosen, [P] int64, and those that are rejected, in the same order.

    Raises DataError for data of single sequences.
    """
    try:
        return batch.parts["chosen"], batch.parts["rejected"]
    except KeyError:
        raise DataError(
            "the data holds no pairs of a chosen and a rejected answer", fix="set data.format=preference"
        ) from None


def count(values: Tensor) -> Tensor:
    """Return the number of values as a float64 scalar on their device; known from a shape, so no device has to count."""
    return torch.full((), float(values.numel()), dtype=torch.float64, device=values.device)


def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, tuple[Any, Any]]:
    """Return what people watch as (sum, count): rewards, their margin, and the share of pairs whose order is right.

    chosen, rejected: rewards, [P].
    """
    chosen, rejected = chosen.detach(), rejected.detach()
    pairs = chosen.numel()
    return {
        "rewards/chosen": (chosen.sum(), pairs),
        "rewards/rejected": (rejected.sum(), pairs),
        "rewards/margin": ((chosen - rejected).sum(), pairs),
        "rewards/accuracy": ((chosen > rejected).sum(), pairs),
    }
