"""The processes of a run: how one joins the others, and how models are divided among them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError
from pegboard.interfaces.platform import Platform
from pegboard.nn.linear import SharedStorage
from pegboard.nn.parallel import Region, Split
from pegboard_trainer.config import MeshSection
from pegboard_trainer.placement import Placement
from pegboard_trainer.roles import ModelRole
from pegboard_trainer.world import World

PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: the first one may be writing a checkpoint."""


def join(mesh: MeshSection, platform: Platform) -> World:
    """Return this process's place among those that a launcher started, as its environment says (WORLD_SIZE, RANK, …).

    Raises ConfigError when their number is not that of the mesh.
    """
    present = int(os.environ.get("WORLD_SIZE", "1"))
    if present != mesh.processes:
        raise ConfigError(
            f"the mesh needs {mesh.processes} processes (replicate x shard x tensor), and there are {present}",
            fix=f"start them with peg run --nproc {mesh.processes} …, or give a mesh whose product is {present}",
        )
    if present == 1:
        return World()
    index = int(os.environ.get("LOCAL_RANK", "0")) if len(platform.devices()) > 1 else 0
    device, backend = platform.device(index), platform.communication_backend()
    if device.type != "cpu":
        torch.get_device_module(device).set_device(device)
    own = not dist.is_initialized()
    if own:
        dist.init_process_group(_backends(device, backend), timeout=PATIENCE)
    dimensions = {"replicate": mesh.replicate, "shard": mesh.shard, "tensor": mesh.tensor}
    made = init_device_mesh(device.type, tuple(dimensions.values()), mesh_dim_names=tuple(dimensions))
    data = made["replicate", "shard"]._flatten("data")
    return World(
        rank=data.get_local_rank(),
        size=data.size(),
        process=dist.get_rank(),
        processes=present,
        index=index,
        mesh=made,
        data_group=data.get_group(),
        host_group=None if own or backend == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE),
        own=own,
    )


def _backends(device: torch.device, backend: str) -> str:
    """Return what tensors on the host and those on the device are sent by, in every group that is made: what a rollout counts and
    gradients that are kept on the host are summed too, without waiting for the device.
    """
    return backend if device.type == "cpu" or backend == "gloo" else f"cpu:gloo,{device.type}:{backend}"


@dataclass(slots=True)
class Placer:
    """Divides the models of a run, one after the other."""

    world: World
    mesh: MeshSection

    @property
    def region(self) -> Region | None:
        """The group that computes each layer together; None where each process computes whole layers."""
        if self.world.mesh is None or self.mesh.tensor == 1:
            return None
        mesh = self.world.mesh["tensor"]
        return Region(mesh.get_group(), mesh.get_local_rank(), mesh.size(), self.mesh.sequence)

    @property
    def index(self) -> int:
        """What is added to the index of a device in the config."""
        return self.world.index

    def shard(self, built: BuiltModel) -> None:
        """Leave each process its shard of a loaded model's weights (FSDP2, arXiv:2304.11277): layer by layer, the rest with the model."""
        if self.world.mesh is None or self.mesh.shard == 1:
            return
        mesh = self.world.mesh["replicate", "shard"] if self.mesh.replicate > 1 else self.world.mesh["shard"]
        model = built.model
        for module in model.modules():
            if isinstance(module, SharedStorage):
                module.unfuse()  # members are gathered one by one
            else:
                _parameters_of_buffers(module)
        # Sums of 16-bit gradients over many processes are not to be rounded on the way.
        half = built.dtype in (torch.bfloat16, torch.float16)
        options = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32 if half else None),
            "offload_policy": CPUOffloadPolicy(pin_memory=built.device.type != "cpu")
            if self.mesh.offload
            else OffloadPolicy(),
        }
        for layer in model.model.layers:
            fully_shard(layer, reshard_after_forward=self.mesh.reshard, **options)  # type: ignore[call-overload]
        fully_shard(model, **options)  # type: ignore[call-overload]
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Losses are divided by the count over all ranks, so that gradients are summed.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def placement(self, roles: Mapping[str, ModelRole]) -> Placement:
        """Return where the parameters of the roles are, by the names that they have in the run."""
        splits: dict[str, Split] = {}
        partial: set[str] = set()
        for index, (role, model) in enumerate(roles.items()):
            division = model.built.division
            if division is not None and model.trained:
                prefix = f"{role}." if index else ""
                splits |= {prefix + name: split for name, split in division.splits.items()}
                partial |= {prefix + name for name in division.partial}
        return Placement(self.world, splits, frozenset(partial))


def _parameters_of_buffers(module: nn.Module) -> None:
    """Make the packed weight of a quantised layer a parameter, since parameters alone are sharded."""
    weight = module._buffers.get("weight")
    if weight is not None and hasattr(module, "load_weight"):
        del module._buffers["weight"]
        module.register_parameter("weight", nn.Parameter(weight.clone(), requires_grad=False))
