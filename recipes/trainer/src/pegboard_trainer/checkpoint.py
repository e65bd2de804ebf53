"""Step folders: `step-00000100/{model/, trainer/}`, and `final -> step-N/model`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from pegboard.errors import ConfigError, ModelError
from pegboard_trainer.disk import UNFINISHED, point
from pegboard_trainer.pieces import Pieces, write_pieces
from pegboard_trainer.placement import Piece, Placement

STEP = re.compile(r"step-(\d{8})")


def step_folders(run: Path) -> list[Path]:
    """Return the complete step folders of a run, oldest first."""
    return sorted(p for p in run.glob("step-*") if STEP.fullmatch(p.name) and (p / "trainer" / "state.json").is_file())


@dataclass(frozen=True, slots=True)
class Trained:
    """What a step folder keeps for resuming. named: the trained parameters. random: the states of generators; None for those of
    now. averages: beside
    the parameters, by name.
    """

    named: Sequence[tuple[str, Parameter]]
    optimizer: Optimizer
    placement: Placement = field(default_factory=Placement)
    random: Mapping[str, Tensor] | None = None
    averages: Mapping[str, Tensor] = field(default_factory=dict)


def write_trainer(
    trainer: Path, step: int, trained: Trained, state: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write what resuming needs into a folder that exists: this process's part of it.

    state: what the loop needs beside optimizer and random numbers, as JSON values. tensors: further ones, of this process alone.
    """
    world, local = trained.placement.world, trained.placement.local
    numbers = random_state(trained.named) if trained.random is None else trained.random
    weights = ((n, local(p.detach()), trained.placement.piece(n, p)) for n, p in trained.named)
    write_pieces(trainer, "weights", weights, world)
    write_pieces(trainer, "optimizer", _states(trained), world)
    if trained.averages:
        named = ((n, p) for n, p in trained.named if n in trained.averages)
        averages = ((n, local(trained.averages[n]), trained.placement.piece(n, p)) for n, p in named)
        write_pieces(trainer, "averages", averages, world)
    write_pieces(trainer, "random", ((n, t, None) for n, t in numbers.items()), world)
    if tensors:
        write_pieces(trainer, "batches", ((n, t, None) for n, t in tensors.items()), world)
    if world.first:
        groups = [{k: v for k, v in g.items() if k != "params"} for g in trained.optimizer.param_groups]
        held = [(n, k, v) for n, p in trained.named for k, v in trained.optimizer.state[p].items()]
        values = [(n, k, v) for n, k, v in held if not isinstance(v, Tensor)]
        content = {"step": step, "groups": groups, "values": values, **state}
        (trainer / "state.json").write_text(json.dumps(content, indent=1) + "\n")


def _states(trained: Trained) -> Iterator[tuple[str, Tensor, Piece | None]]:
    """Yield the optimizer's tensors with where they belong: beside their parameter, where they have its shape."""
    placement = trained.placement
    for name, parameter in trained.named:
        for key, value in trained.optimizer.state[parameter].items():
            if not isinstance(value, Tensor):
                continue
            part = placement.local(value.detach())
            if part.shape == placement.local(parameter).shape:
                yield f"{name}/{key}", part, placement.piece(name, parameter)
            elif part.dim() == 0:
                yield f"{name}/{key}", part, Piece((), (), own=placement.world.first)
            else:
                yield f"{name}/{key}", part, None


def load_step(folder: Path, trained: Trained) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put weights, optimizer and random numbers back as they were; return the state and the tensors that were saved beside them.

    Raises ModelError when the folder is of another model.
    """
    trainer, placement, world = folder / "trainer", trained.placement, trained.placement.world
    weights = Pieces(trainer, "weights", world)
    if {n: placement.piece(n, p).whole for n, p in trained.named} != weights.shapes:
        raise ModelError(
            f"{folder} holds other trained weights than this run", fix="resume with the model and adapter of that run"
        )
    parameters = dict(trained.named)
    with torch.no_grad():
        for name, parameter in trained.named:
            part = placement.local(parameter)
            part.copy_(weights.load(name, placement.piece(name, parameter), tuple(part.shape)))
    averages = Pieces(trainer, "averages", world)
    for name, value in trained.averages.items():
        part = placement.local(value)
        part.copy_(averages.load(name, placement.piece(name, parameters[name]), tuple(part.shape)))
    states = Pieces(trainer, "optimizer", world)
    for key in states.names:
        name, _, entry = key.rpartition("/")
        # Not optimizer.load_state_dict: that would round float32 moments to the type of a 16-bit parameter.
        trained.optimizer.state[parameters[name]][entry] = _state(states, key, name, parameters[name], trained)
    saved: dict[str, Any] = json.loads((trainer / "state.json").read_text())
    for name, entry, value in saved["values"]:
        trained.optimizer.state[parameters[name]][entry] = value
    for group, values in zip(trained.optimizer.param_groups, saved["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    numbers = Pieces(trainer, "random", world)
    if not numbers.foreign:  # another number of processes draws other numbers
        restore_random({name: numbers.own(name) for name in numbers.names}, trained.named)
    extra = Pieces(trainer, "batches", world)
    return saved, {name: extra.own(name) for name in extra.names}


def _state(states: Pieces, key: str, name: str, parameter: Parameter, trained: Trained) -> Tensor:
    """Return one tensor of the optimizer's, as the optimizer keeps it: beside a DTensor it is one too, if not all there is here."""
    placement = trained.placement
    device = getattr(trained.optimizer, "state_device", None) or placement.local(parameter).device
    if key not in states.shapes:
        return states.own(key).to(device)
    if not states.shapes[key] and parameter.dim():
        return states.load(key, Piece((), (), own=True), ()).to(device)
    piece = placement.piece(name, parameter)
    if states.shapes[key] != piece.whole:
        return states.own(key).to(device)
    part = states.load(key, piece, tuple(placement.local(parameter).shape)).to(device)
    if isinstance(parameter, DTensor) and not getattr(trained.optimizer, "local_states", False):
        return DTensor.from_local(
            part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
    return part


@dataclass(frozen=True, slots=True)
class _Held:
    """An optimizer that stands still: what files are made of."""

    state: Mapping[Any, Any]
    param_groups: Sequence[Mapping[str, Any]]


def snapshot(trained: Trained) -> Trained:
    """Return what `write_trainer` needs with the values of now, copied to the host."""
    copies = [(n, p, host_copy(p)) for n, p in trained.named]
    states = {
        copy: {k: host_copy(v) if isinstance(v, Tensor) else v for k, v in trained.optimizer.state[p].items()}
        for _, p, copy in copies
    }
    groups = [{k: v for k, v in g.items() if k != "params"} for g in trained.optimizer.param_groups]
    named: Any = [(n, copy) for n, _, copy in copies]
    held: Any = _Held(states, groups)
    averages = {name: host_copy(value) for name, value in trained.averages.items()}
    return Trained(named, held, trained.placement, random_state(trained.named), averages)


def host_copy(tensor: Tensor) -> Tensor:
    """Return a copy on the host; of a DTensor, the part that is here, still as one."""
    part = Placement.local(tensor.detach()).to("cpu", copy=True)
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def random_state(named: Sequence[tuple[str, Parameter]]) -> dict[str, Tensor]:
    """Return the state of torch's generators, of the host and of the device that is trained on."""
    states = {"host": torch.get_rng_state()}
    for device in {p.device for _, p in named if p.device.type != "cpu"}:
        states["device"] = torch.get_device_module(device).get_rng_state(device).cpu()
    return states


def restore_random(states: Mapping[str, Tensor], named: Sequence[tuple[str, Parameter]]) -> None:
    """Put `random_state` back."""
    torch.set_rng_state(states["host"])
    for device in {p.device for _, p in named if p.device.type != "cpu"}:
        if "device" in states:
            torch.get_device_module(device).set_rng_state(states["device"], device)


def prune(run: Path, keep: int | None, best: int | None = None) -> None:
    """Remove all but the newest `keep` step folders, and that of the step `best`."""
    for folder in step_folders(run)[: -keep if keep else 0]:
        if best is None or folder.name != f"step-{best:08d}":
            # By another name first: a folder that is half removed must not look like a whole one.
            leaving = folder.with_name(f"{UNFINISHED}{folder.name}-old")
            folder.rename(leaving)
            shutil.rmtree(leaving)


def mark_final(run: Path, step: int) -> None:
    """Point `final` at the model of a step."""
    point(run / "final", f"step-{step:08d}/model")


def find_resume(resume: str | None, output: Path) -> Path | None:
    """Return the step folder to continue from, or None to begin. Raises ConfigError when it does not exist."""
    if resume is None:
        return None
    named = output if resume == "auto" else Path(resume).expanduser()
    if STEP.fullmatch(named.name):
        if not (named / "trainer" / "state.json").is_file():
            raise ConfigError(
                f"resume={resume} is no complete step folder", fix="name a step folder, its run folder, or auto"
            )
        return named
    folders = step_folders(named)
    if not folders and resume != "auto":
        raise ConfigError(
            f"there is no step to resume from in {resume}", fix="name a run folder with a step-… folder, or auto"
        )
    return folders[-1] if folders else None


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the keys in which a resumed run differs from the one that it continues."""
    different = list(differences(saved, now))
    if different:
        raise ConfigError(
            f"the resumed run had other values of {', '.join(different)}, so it cannot be continued exactly",
            fix="give the values of its config.yaml, or start a new run from its model/",
        )


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the keys that two nested mappings do not share."""
    for key in sorted({*one, *other}):
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield prefix + key
