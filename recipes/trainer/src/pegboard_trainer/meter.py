"""Sums and counts on the device, turned into numbers only when they are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Reducer(Protocol):
    """Adds values over the data-parallel ranks of a run."""

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all ranks, of the same shape, without waiting for the device."""


class Single:
    """The mesh of size 1: one device, nothing to add."""

    def sum(self, value: Tensor) -> Tensor:
        """Return `value`."""
        return value


class Meter:
    """Collects metrics as (sum, count) from step to step."""

    def __init__(self, device: torch.device, reducer: Reducer) -> None:
        self._device = device
        self._reducer = reducer
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}

    def count(self, amounts: Mapping[str, float]) -> None:
        """Add host numbers to totals, which `take` gives as sums: tokens, say. The same names every time, on every rank."""
        for name, amount in amounts.items():
            self._totals[name] = self._totals.get(name, 0.0) + amount

    def add(self, metrics: Mapping[str, tuple[Any, Any]], weight: float = 1.0) -> None:
        """Add to the sums, `weight` times. Values are numbers or scalar tensors; nothing is read back from the device.

        A weight of 0 adds nothing but the names, which must be the same on every rank.
        """
        for name, (total, count) in metrics.items():
            pair = torch.stack([self._scalar(total), self._scalar(count)]) * weight
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def take(self) -> dict[str, float]:
        """Return the mean of each metric and the sum of each total over what was added since the last call, and start afresh.

        Reads from the device once.
        """
        counted = [torch.stack([self._scalar(total), self._scalar(1)]) for total in self._totals.values()]
        rows = [*self._sums.values(), *counted]
        if not rows:
            return {}
        table = self._reducer.sum(torch.stack(rows)).tolist()
        means, totals = list(self._sums), list(self._totals)
        self._sums, self._totals = {}, {}
        taken = {name: total / count if count else 0.0 for name, (total, count) in zip(means, table, strict=False)}
        return {**taken, **{name: total for name, (total, _) in zip(totals, table[len(means) :], strict=True)}}

    def _scalar(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(self._device, torch.float64)
        # Filled on the device: a copy from the host would wait for it.
        return torch.full((), value, dtype=torch.float64, device=self._device)
