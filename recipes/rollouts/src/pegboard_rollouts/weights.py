"""The weights that an engine computes with: those that are trained, or a whole copy where a process has only parts of them."""

from __future__ import annotations

import torch

from pegboard.build import BuiltModel
from pegboard_trainer.placement import Placement
from pegboard_trainer.roles import ModelRole


class SharedWeights:
    """The very parameters that the optimizer changes, so that there is nothing to bring up to date."""

    def __init__(self, role: ModelRole) -> None:
        self.built: BuiltModel = role.built

    def refresh(self) -> None:
        """Do nothing."""


class GatheredWeights:
    """A whole model in each process, beside its part of the one that is trained.

    What is trained is gathered one parameter at a time, by all processes for all of them: none holds more than its copy and one tensor.
    What is frozen was read when the copy was built.
    """

    def __init__(self, role: ModelRole, placement: Placement) -> None:
        assert role.again is not None
        self.built: BuiltModel = role.again()
        self._placement = placement
        # The parameters as they are divided: inside a pass a model has whole ones in their places.
        self._trained = [(name, p) for name, p in role.built.model.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the trained weights of now, into the same memory. All processes do so at the same place."""
        model = self.built.model
        for name, parameter in self._trained:
            model.get_parameter(name).copy_(self._placement.whole(name, parameter.detach()))


def served_weights(role: ModelRole, placement: Placement) -> SharedWeights | GatheredWeights:
    """Return what an engine can compute with, of the first role of a run."""
    mesh = placement.world.mesh
    divided = mesh is not None and (mesh["shard"].size() > 1 or mesh["tensor"].size() > 1)
    return GatheredWeights(role, placement) if divided else SharedWeights(role)
