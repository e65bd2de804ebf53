"""Kind `objective`: what training minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from pegboard.nn.head import Head
    from pegboard.types import Batch, LossOutput


class Role(Protocol):
    """One model of a run as an objective sees it: "policy", "reference", "teacher", "value" or "reward"."""

    def hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden states [T, H] of the batch, without gradient for a frozen role."""

    @property
    def head(self) -> Head:
        """The output head, for the chunked losses of `pegboard.nn.loss`, which never build logits [T, V]."""


class Objective(ABC):
    """A loss over a batch, as a sum. Constructed with the validated options of its schema."""

    @abstractmethod
    def denominator(self, batch: Batch) -> Tensor:
        """Return what the sum is to be divided by (tokens or pairs of this batch), a float64 scalar on the batch's device.

        The loop adds this over the accumulation group and the data-parallel ranks before the first backward; zero is legal.
        """

    @abstractmethod
    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss of the batch and metrics as (sum, count). Never synchronises with the device."""
