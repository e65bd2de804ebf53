"""The configuration: that of every run with rollouts, and three further models."""

from __future__ import annotations

from pydantic import Field

from pegboard_rollouts.config import RolloutConfig
from pegboard_trainer.config import RoleSection


class PpoConfig(RolloutConfig):
    """A run with a value model beside the policy."""

    value: RoleSection | None = Field(
        default=None,
        description="the model that learns what to expect; as `model`, with an adapter of its own, where this is left out",
    )
    reference: RoleSection | None = Field(
        default=None,
        description="a frozen model, of `model` where keys are left out; without this section it is the policy with its adapter off",
    )
    reward: RoleSection | None = Field(
        default=None,
        description="a model that scores answers, of the same tokenizer, beside or in the place of `rewards`",
    )
