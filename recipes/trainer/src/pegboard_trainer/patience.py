"""Whether a run still becomes better on the data that it does not learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Patience:
    """Remembers the best measurement. State of a run: it is saved with every step.

    metric: what is looked at. greater: whether more of it is better. limit: measurements in a row without a better one after which a
    run stops; None for never. margin: how much better counts as better.
    """

    metric: str = "validation/loss"
    greater: bool = False
    limit: int | None = None
    margin: float = 0.0
    best: float | None = None
    best_step: int | None = None
    misses: int = 0

    def is_over(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in the measurement of a step; return whether there were too many in a row that were no better."""
        value = metrics.get(self.metric)
        if value is None:
            return False
        if self._better(value):
            self.best, self.best_step, self.misses = value, step, 0
        else:
            self.misses += 1
        return self.limit is not None and self.misses >= self.limit

    def _better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best if self.greater else self.best - value
        return gain > self.margin

    def describe(self) -> str:
        """Return what was best, for people."""
        return f"{self.metric} was best after step {self.best_step} ({self.best:.6g}) and {self.misses} times no better since"

    def state(self) -> dict[str, Any]:
        """Return what is remembered, as JSON values."""
        return {"best": self.best, "best_step": self.best_step, "misses": self.misses}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember what `state` holds."""
        self.best, self.best_step, self.misses = state["best"], state["best_step"], state["misses"]
