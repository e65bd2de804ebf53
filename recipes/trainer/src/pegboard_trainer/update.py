"""What happens to gradients between the backward passes of a step and the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from pegboard_trainer.buckets import Buckets
from pegboard_trainer.placement import Placement


@dataclass(slots=True)
class Update:
    """Owns the gradients and rates of the trained parameters.

    clip: largest norm of the gradient; None for none. placement: where parts of the parameters are, in a run of several processes.
    Gradients of what several processes have whole are summed over these during the last backward pass of a step.
    """

    parameters: Sequence[tuple[str, Parameter]]
    optimizer: Optimizer
    clip: float | None = None
    placement: Placement = field(default_factory=Placement)
    _buckets: Buckets = field(init=False)

    def __post_init__(self) -> None:
        self._buckets = self._sums()

    @property
    def rate(self) -> float:
        """The learning rate of the first group in the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin(self, factor: float) -> None:
        """Set the rates of a step: `factor` times each group's peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor

    def last_pass(self) -> None:
        """Say that the next backward pass is the last one of the step."""
        self._buckets.arm()

    def finish(self) -> Tensor:
        """Take the optimizer's step with the gradients that the backward passes left, and drop them.

        Returns the norm of the whole gradient before clipping, a scalar that is still on the device.
        """
        self._buckets.finish()
        self.placement.reduce_parts(self.parameters)
        norm = self.placement.norm(self.parameters)
        if self.clip is not None:
            self._scale(torch.clamp(self.clip / (norm + 1e-6), max=1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _sums(self) -> Buckets:
        return Buckets(self.parameters, self.placement)

    def _scale(self, factor: Tensor) -> None:
        """Let gradients count by a factor: within the optimizer's pass over them, where it has a place for it (`AdamW.factor`)."""
        if hasattr(self.optimizer, "factor"):
            self.optimizer.factor = factor
            return
        gradients = [self.placement.local(p.grad) for _, p in self.parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor.to(gradients[0].device))
