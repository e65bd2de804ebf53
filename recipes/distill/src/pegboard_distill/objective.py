"""The objective: a divergence from the teacher, mixed with the cross entropy of the data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.objective import Objective, Role
from pegboard.types import Batch, LossOutput
from pegboard_distill.chunked import Distillation, distill_sum
from pegboard_distill.options import DistillOptions

PADDING = 1024
"""Rows by which vocabularies of one tokenizer may differ: families pad them to different multiples."""


class DistillObjective(Objective):
    """A sum over the rows that have a target, with the roles "policy" (the student) and "teacher"; the denominator is their number."""

    def __init__(self, options: DistillOptions) -> None:
        self._how = Distillation(**options.model_dump())

    def prepare(self, roles: Mapping[str, Role], device: torch.device) -> None:
        """Raise ConfigError when the two vocabularies cannot be of one tokenizer."""
        own, other = (roles[name].head.matrix.shape[0] for name in ("policy", "teacher"))
        if abs(own - other) > PADDING:
            raise ConfigError(
                f"the teacher's vocabulary has {other} tokens and the student's {own}, so their tokenizers differ",
                fix="choose a teacher with the student's tokenizer",
            )

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of tokens that count, a float64 scalar; known from a shape, so no device has to count."""
        rows = batch.target_rows
        return torch.full((), float(rows.numel()), dtype=torch.float64, device=rows.device)

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss, and by token: divergence, cross entropy, and how often both find the same token most likely."""
        student, teacher = roles["policy"], roles["teacher"]
        with torch.no_grad():
            taught = teacher.hidden(batch)  # first, while no activations of the student are kept
        found = distill_sum(
            student.hidden(batch), student.head, taught, teacher.head, batch.targets, batch.target_rows, self._how
        )
        tokens = batch.target_rows.numel()
        return LossOutput(
            found.loss,
            {
                "divergence": (found.divergence, tokens),
                "cross_entropy": (found.cross_entropy, tokens),
                "agreement": (found.agreement, tokens),
            },
        )
