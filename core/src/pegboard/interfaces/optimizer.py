"""Kind `optimizer`: parameter updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from pegboard.ops import KernelTable


class OptimizerFactory(ABC):
    """Builds an optimizer. Constructed with the validated options of its schema, of which `lr` is the peak learning rate.

    kernels: the ops of the platform that the parameters are on, given before `build`; None for torch's own implementations.
    """

    kernels: KernelTable | None = None

    @abstractmethod
    def build(self, parameters: Sequence[tuple[str, Parameter]]) -> Optimizer:
        """Return an optimizer for the named parameters, with each group's `lr` at its peak value."""

    def options(self) -> dict[str, Any]:
        """Return the options for people to read."""
        return {}
