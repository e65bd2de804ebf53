"""Kind `objective`: what training minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

    from pegboard.nn.head import Head
    from pegboard.types import Batch, LossOutput


class Role(Protocol):
    """One model of a run as an objective sees it: "policy", "reference", "teacher", "value" or "reward"."""

    def hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden states [T, H] of the batch, without gradient for a frozen role."""

    @property
    def head(self) -> Head:
        """The output head, for the chunked losses of `pegboard.nn.loss`, which never build logits [T, V].

        That of a role with a scalar head gives [M, 1].
        """


class Objective(ABC):
    """A loss over a batch, as a sum. Constructed with the validated options of its schema."""

    @abstractmethod
    def denominator(self, batch: Batch) -> Tensor:
        """Return what the sum is to be divided by (tokens or pairs of this batch), a float64 scalar on the batch's device.

        The loop adds this over the accumulation group and the data-parallel ranks before the first backward; zero is legal.
        """

    def totals(self, roles: Mapping[str, Role], batch: Batch) -> Tensor | None:
        """Return sums over this batch that the loss of every batch of the step depends on, [K] without gradient; None for a loss that
        needs none (whatever the batch).

        The loop adds them as it adds denominators, before the first loss, and hands them to each batch as `extras["totals"]`. Every
        call takes the same passes through the models, whatever the batch holds: divided ones need all ranks for each.
        """
        return None

    @abstractmethod
    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss of the batch and metrics as (sum, count). Never synchronises with the device."""

    def prepare(self, roles: Mapping[str, Role], device: torch.device) -> None:
        """Look at the models once, before the optimizer is made; parameters of the objective's own are made here."""
        return

    def named_parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return parameters of the objective's own that are trained beside the models'. They are saved with every step."""
        return ()

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know beside the parameters, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        return
