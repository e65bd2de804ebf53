"""The processes of a run: how one joins the others, and how models are divided among them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError
from pegboard.interfaces.platform import Platform
from pegboard.nn.parallel import Split
from pegboard_trainer.config import MeshSection
from pegboard_trainer.placement import Placement
from pegboard_trainer.roles import ModelRole
from pegboard_trainer.world import World


def join(mesh: MeshSection, platform: Platform) -> World:
    """Return this process's place among those that a launcher started, as its environment says (WORLD_SIZE, RANK, …).

    Raises ConfigError when their number is not that of the mesh.
    """
    present = int(os.environ.get("WORLD_SIZE", "1"))
    if present != mesh.processes:
        raise ConfigError(
            f"the mesh needs {mesh.processes} processes (replicate x shard x tensor), and there are {present}",
            fix=f"peg run --nproc {mesh.processes} …, or a mesh whose product is {present}",
        )
    return World()


@dataclass(slots=True)
class Placer:
    """Divides the models of a run, one after the other, and remembers how."""

    world: World
    mesh: MeshSection
    _splits: dict[int, Mapping[str, Split]] = field(default_factory=dict)
    _partial: dict[int, frozenset[str]] = field(default_factory=dict)

    def __call__(self, built: BuiltModel, *, trained: bool) -> None:
        """Give each process its part of a model that was prepared and has no weights yet."""
        return

    def placement(self, roles: Mapping[str, ModelRole]) -> Placement:
        """Return where the parameters of the trained roles are."""
        return Placement(self.world)
