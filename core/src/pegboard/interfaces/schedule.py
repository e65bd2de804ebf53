"""Kind `schedule`: learning rate over steps."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Schedule(ABC):
    """A factor on the peak learning rate. Constructed with the validated options of its schema."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Return the factor in [0, 1] for `step` (from 0) of `total` optimizer steps. Pure: the same for the same arguments."""
