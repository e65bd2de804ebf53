"""Kind `search`: which settings a sweep tries next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Point = Mapping[str, str]
"""Config key -> value as it is written in an override: {"optimizer.lr": "1e-4"}."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A key that a sweep varies: over `values`, or where those are empty over the numbers from `low` to `high`, both included.

    log: numbers are spread evenly over their logarithms. integer: they are whole.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run of a sweep. value: what it came to; None while it runs, and where it failed."""

    number: int
    point: Point
    status: Literal["running", "finished", "failed"] = "running"
    value: float | None = None


class Search(ABC):
    """Proposes points. Constructed with the validated options of its schema; holds no state of a sweep, so that one can be resumed.

    adaptive: whether proposals depend on how earlier trials went; others are all asked for, and checked, before the first one runs.
    """

    adaptive: bool = False

    @abstractmethod
    def count(self, axes: Sequence[Axis], samples: int | None) -> int:
        """Return the number of trials of a sweep. samples: as the user asked for. Raises ConfigError where that cannot be met."""

    @abstractmethod
    def propose(
        self, axes: Sequence[Axis], number: int, history: Sequence[Trial], *, seed: int, maximise: bool
    ) -> Point:
        """Return a value for every axis, for trial `number` (from 0). The same for the same arguments.

        history: the trials so far, those included that still run. maximise: whether a larger value is better.
        """
