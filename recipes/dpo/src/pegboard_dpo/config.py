"""The configuration of the recipes: that of every training run, the objective with its options, and the reference."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pegboard.config import Choice, PluginSection
from pegboard_trainer.config import RoleSection, TrainConfig


class PreferenceConfig(TrainConfig):
    """A run over preferences."""

    objective: Annotated[Choice, PluginSection("objective")]


class ReferenceConfig(PreferenceConfig):
    """A run over preferences that holds the policy to a reference."""

    reference: RoleSection | None = Field(
        default=None,
        description="a frozen model, of `model` where keys are left out; without this section it is the policy with its adapter "
        "off, and there is none without an adapter",
    )
