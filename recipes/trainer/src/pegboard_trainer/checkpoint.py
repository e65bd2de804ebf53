"""Step folders: `step-00000100/{model/, trainer/}`, and `final -> step-N/model`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from pegboard.errors import ConfigError, ModelError
from pegboard.weights import read_safetensors, write_safetensors
from pegboard_trainer.disk import point, whole_folder

STEP = re.compile(r"step-(\d{8})")


def step_folders(run: Path) -> list[Path]:
    """Return the complete step folders of a run, oldest first."""
    return sorted(p for p in run.glob("step-*") if STEP.fullmatch(p.name) and (p / "trainer" / "state.json").is_file())


def save_step(
    run: Path,
    step: int,
    write_model: Callable[[Path], None],
    named: Sequence[tuple[str, Parameter]],
    optimizer: Optimizer,
    state: Mapping[str, Any],
) -> Path:
    """Write one step folder. `state` is what the loop needs beside optimizer and random numbers, as JSON values."""
    target = run / f"step-{step:08d}"
    with whole_folder(target) as folder:
        write_model(folder / "model")
        trainer = folder / "trainer"
        trainer.mkdir()
        held = [(n, k, v) for n, p in named for k, v in optimizer.state[p].items()]
        tensors = ((f"{n}/{k}", v.detach()) for n, k, v in held if isinstance(v, Tensor))
        write_safetensors(trainer / "optimizer.safetensors", tensors)
        write_safetensors(trainer / "weights.safetensors", ((n, p.detach()) for n, p in named))
        write_safetensors(trainer / "random.safetensors", random_state(named).items())
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        values = [(n, k, v) for n, k, v in held if not isinstance(v, Tensor)]
        content = {"step": step, "groups": groups, "values": values, **state}
        (trainer / "state.json").write_text(json.dumps(content, indent=1) + "\n")
    return target


def load_step(folder: Path, named: Sequence[tuple[str, Parameter]], optimizer: Optimizer) -> dict[str, Any]:
    """Put weights, optimizer and random numbers back as they were; return the state that was saved beside them.

    Raises ModelError when the folder is of another model.
    """
    trainer = folder / "trainer"
    weights = {k: t.load() for k, t in read_safetensors(trainer / "weights.safetensors").items()}
    if {n: tuple(p.shape) for n, p in named} != {n: tuple(t.shape) for n, t in weights.items()}:
        raise ModelError(
            f"{folder} holds other trained weights than this run", fix="resume with the model and adapter of that run"
        )
    states: dict[str, dict[str, Any]] = {}
    for key, lazy in read_safetensors(trainer / "optimizer.safetensors").items():
        name, _, field = key.rpartition("/")
        states.setdefault(name, {})[field] = lazy.load()
    for name, parameter in named:
        with torch.no_grad():
            parameter.copy_(weights[name])
        if name in states:
            # Not optimizer.load_state_dict: that would round float32 moments to the type of a 16-bit parameter.
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in states[name].items()}
    saved: dict[str, Any] = json.loads((trainer / "state.json").read_text())
    parameters = dict(named)
    for name, field, value in saved["values"]:
        optimizer.state[parameters[name]][field] = value
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    restore_random({k: t.load() for k, t in read_safetensors(trainer / "random.safetensors").items()}, named)
    return saved


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


def prune(run: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` step folders."""
    for folder in step_folders(run)[: -keep if keep else 0]:
        shutil.rmtree(folder)


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
