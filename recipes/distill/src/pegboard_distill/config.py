"""The configuration: that of every training run, the objective with its options, and the teacher."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pegboard.config import Choice, PluginSection
from pegboard_trainer.config import RoleSection, TrainConfig


class DistillConfig(TrainConfig):
    """A run in which a student learns from a teacher."""

    objective: Annotated[Choice, PluginSection("objective")]
    teacher: RoleSection = Field(description="the model that is learned from; it may be quantised")
