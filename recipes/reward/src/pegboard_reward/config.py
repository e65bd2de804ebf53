"""The configuration: that of every training run, and the objective with its options."""

from __future__ import annotations

from typing import Annotated

from pegboard.config import Choice, PluginSection
from pegboard_trainer.config import TrainConfig


class RewardConfig(TrainConfig):
    """A run that trains a reward model."""

    objective: Annotated[Choice, PluginSection("objective")]
