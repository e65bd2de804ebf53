"""The configuration: that of every run with rollouts, and the reference."""

from __future__ import annotations

from pydantic import Field

from pegboard_rollouts.config import RolloutConfig
from pegboard_trainer.config import RoleSection


class GrpoConfig(RolloutConfig):
    """A run in which answers to one prompt are compared with each other."""

    reference: RoleSection | None = Field(
        default=None,
        description="a frozen model, of `model` where keys are left out; without this section it is the policy with its adapter "
        "off. Only computed where objective.beta is above 0",
    )
