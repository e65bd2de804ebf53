"""The configuration: that of every training run, and the objective with its options."""

from __future__ import annotations

from typing import Annotated, Any

from pegboard.config import Choice, PluginSection
from pegboard_trainer.config import TrainConfig


class RewardConfig(TrainConfig):
    """A run that trains a reward model."""

    objective: Annotated[Choice, PluginSection("objective")]

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share with the one that it continues, the objective included."""
        return {**super().identity(), "objective": self.objective}
