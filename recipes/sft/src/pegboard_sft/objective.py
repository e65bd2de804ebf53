"""The objective: cross entropy of the tokens to be learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pegboard.interfaces.objective import Objective, Role
from pegboard.nn.loss import cross_entropy_sum
from pegboard.types import Batch, LossOutput


class SupervisedObjective(Objective):
    """Sum of -log p(target) over the rows that have a target; the denominator is their number."""

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of tokens to be learned, a float64 scalar; known from a shape, so no device has to count."""
        rows = batch.target_rows
        return torch.full((), float(rows.numel()), dtype=torch.float64, device=rows.device)

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss of the role "policy"."""
        policy = roles["policy"]
        return LossOutput(cross_entropy_sum(policy.hidden(batch), policy.head, batch.targets, batch.target_rows))
