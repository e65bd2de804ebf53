"""Kind `executor`: running one step of a model, here or in workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.types import KVLayout, StepPlan, StepResult


class Executor(ABC):
    """Runs steps in the order in which they were submitted. `depth` steps may be in flight at once (1 or 2)."""

    depth: int

    @abstractmethod
    def load(self, built: BuiltModel, layout: KVLayout, num_pages: int) -> None:
        """Take a model and allocate a cache of `num_pages` pages, the reserved page 0 included; called once, first."""

    @abstractmethod
    def submit(self, plan: StepPlan) -> int:
        """Start a step and return its handle. Raises RuntimeError when `depth` steps are in flight already."""

    @abstractmethod
    def collect(self, handle: int) -> StepResult:
        """Wait for a step. Each handle is collected once, in order."""

    @abstractmethod
    def update_weights(self, version: int) -> None:
        """Refresh derived weights at a step boundary; addresses stay the same."""

    @abstractmethod
    def close(self) -> None:
        """Free the model, the cache and any worker. Safe to call twice."""
