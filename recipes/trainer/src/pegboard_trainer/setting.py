"""What a recipe may build its own batches from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pegboard.interfaces.objective import Objective
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.data import Data
from pegboard_trainer.placement import Placement
from pegboard_trainer.roles import ModelRole
from pegboard_trainer.world import World

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry


@dataclass(frozen=True, slots=True)
class Setting:
    """A run before its first step. The function that `RecipeSpec.batches` names takes it and returns a `BatchSource`.

    config: of the recipe's own schema. data: the rows of the config's `data`, for prompts. placement: where the parts of parameters are.
    """

    config: TrainConfig
    registry: Registry
    tokenizer: Tokenizer
    roles: Mapping[str, ModelRole]
    objective: Objective
    data: Data
    placement: Placement
    device: torch.device

    @property
    def world(self) -> World:
        """This process's place among all."""
        return self.placement.world
