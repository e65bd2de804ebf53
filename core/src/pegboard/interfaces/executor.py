"""Kind `executor`: running one step of a model, here or in workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pegboard.build import BuiltModel
    from pegboard.plugins.load import Registry
    from pegboard.types import CachePlan, StepPlan, StepResult


class ExecutorDied(Exception):
    """Whatever ran the steps is gone, with the cache and every step in flight; `restart` brings it back."""


class Executor(ABC):
    """Runs steps in the order in which they were submitted.

    depth: steps that may be in flight at once (1 or 2), final after `load`. With 2 the next step is scheduled while one runs.
    """

    depth: int

    @abstractmethod
    def load(self, built: BuiltModel, cache: CachePlan, registry: Registry) -> None:
        """Take a model, load its weights where it has none yet, and allocate the cache; called once, first."""

    @abstractmethod
    def submit(self, plan: StepPlan) -> int:
        """Start a step and return its handle. Raises RuntimeError when `depth` steps are in flight already, ExecutorDied."""

    @abstractmethod
    def collect(self, handle: int) -> StepResult:
        """Wait for a step. Each handle is collected once, in order. Raises what the step raised, or ExecutorDied."""

    @abstractmethod
    def update_weights(self, version: int) -> None:
        """Refresh derived weights at a step boundary; addresses stay the same."""

    @abstractmethod
    def close(self) -> None:
        """Free the model, the cache and any worker. Safe to call twice."""

    def prepare(self) -> bool:
        """Use a moment in which there is nothing to compute to make later steps faster; return whether another one would be of use."""
        return False

    def expert_tokens(self) -> list[list[int]] | None:
        """Return how many tokens used each expert of a mixture, by layer and expert; None where nobody counts."""
        return None

    def restart(self) -> None:
        """Start again after ExecutorDied, with an empty cache and the same model."""
        raise ExecutorDied(f"{type(self).__name__} cannot start again")

    def load_adapter(self, slot: int, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
        """Put an adapter into a slot; steps in flight do not use that slot.

        tensors: as `Adapter.tensors` gives them. config: as `Adapter.config` does, with the name of the plugin under "use".
        Raises ConfigError or ModelError for one that cannot be served, as `AdapterSlots.load` does.
        """
        from pegboard.errors import ConfigError

        raise ConfigError(
            f"{type(self).__name__} serves no adapters beside its model", fix="merge the adapter into the model"
        )

    def unload_adapter(self, slot: int) -> None:
        """Empty a slot."""
        return
