"""However the work is divided over processes, a run is the run of one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.weights import read_folder, read_safetensors

Arguments = Callable[..., list[str]]
Losses = Callable[[Path], dict[int, float]]
FamilyModel = Callable[[str], Path]
Group = Callable[[int, Sequence[Sequence[str]]], None]

EXACT = ["model.dtype=float64", "adapter.dtype=float64", "checkpoint.every=2", "steps=4", "data.validation=7"]
FULL = ["model.dtype=float64", "checkpoint.every=2", "steps=4", "data.validation=7", "optimizer.eps=1e-6"]


def numbers(run: Path) -> list[dict[str, float]]:
    """What each logged line measures of the model."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "grad_norm", "tokens", "trained_tokens", "validation/loss")
    return [{key: value for key, value in line.items() if key in kept} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    file = run / "final" / "adapter_model.safetensors"
    found: Any = read_safetensors(file) if file.exists() else read_folder(run / "final")
    return {name: tensor.load() for name, tensor in found.items()}


def assert_same(run: Path, expected: Path, rel: float = 1e-10, atol: float = 1e-9) -> None:
    assert [line["step"] for line in numbers(run)] == [line["step"] for line in numbers(expected)]
    for one, other in zip(numbers(run), numbers(expected), strict=True):
        assert one == pytest.approx(other, rel=rel)
    ours, theirs = weights(run), weights(expected)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=atol)


def after(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run as it was after a step."""
    shutil.copytree(run, copy, symlinks=True)
    for folder in copy.glob("step-*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    return copy


def test_two_processes_are_one(tmp_path: Path, group: Group, arguments: Arguments, train: Callable[..., Path]) -> None:
    """Replicated, sharded and split; the step folder of two continued by one. The last round of the validation is not full."""
    one = train(tmp_path / "one", *FULL, "batch.accumulate=2")
    meshes = {"replicate": 1, "shard": 1, "tensor": 2}
    group(
        2,
        [
            arguments(tmp_path / name, *FULL, f"batch.accumulate={accumulate}", f"mesh.{name}=2")
            for name, accumulate in meshes.items()
        ],
    )
    for name in meshes:
        assert_same(tmp_path / name, one)
    for name in ("shard", "tensor"):
        resumed = train(after(tmp_path / name, 2, tmp_path / f"{name}-1"), *FULL, "batch.accumulate=2", "resume=auto")
        assert_same(resumed, one)


def test_what_saves_time_and_memory_changes_nothing(
    tmp_path: Path, group: Group, arguments: Arguments, train: Callable[..., Path]
) -> None:
    """Updates inside the backward pass, and step folders written in the background by all processes."""
    more = [*FULL, "clip=null", "steps=2", "checkpoint.every=1", "average.decay=0.5"]
    one = train(tmp_path / "one", *more, "batch.accumulate=2")
    early = [*more, "batch.size=4", "memory.update_in_backward=true", "checkpoint.background=true"]
    large = train(tmp_path / "large", *more, "batch.size=4")
    meshes = {
        "replicate": [*more, "mesh.replicate=2", "checkpoint.background=true"],
        "shard": [*more, "mesh.shard=2", "checkpoint.background=true", "memory.update_in_backward=true"],
        "replicate-early": [*more, "mesh.replicate=2", "memory.update_in_backward=true"],
        "tensor-early": [*early, "mesh.tensor=2"],
    }
    group(2, [arguments(tmp_path / name, *options) for name, options in meshes.items()])
    for name in meshes:
        expected = large if name == "tensor-early" else one
        assert_same(tmp_path / name, expected)
        for step in ("step-00000001", "step-00000002"):
            for folder in ("model", "average"):
                ours, theirs = (read_folder(run / step / folder) for run in (tmp_path / name, expected))
                assert list(ours) == list(theirs)
                for key, value in theirs.items():
                    torch.testing.assert_close(ours[key].load(), value.load(), rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Path:
    """The toy model with layers wide enough for blocks of 64 weights to be split."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(toy_model, folder)
    config = json.loads((folder / "config.json").read_text())
    old = {"hidden_size": config["hidden_size"], "intermediate_size": config["intermediate_size"]}
    new = {"hidden_size": 128, "intermediate_size": 256}
    (folder / "config.json").write_text(json.dumps({**config, **new}))
    sizes = {old[key]: new[key] for key in old} | {old["hidden_size"] // 2: 64}
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        shape = [sizes.get(size, size) for size in tensor.shape]
        tensors[name] = torch.randn(shape, generator=generator) * 0.1 if len(shape) > 1 else torch.ones(shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", ["full", "lora", "qlora"])
def test_four_processes_are_one_too(
    tmp_path: Path, group: Group, arguments: Arguments, train: Callable[..., Path], config: str, wide_model: Path
) -> None:
    more = [*(FULL if config == "full" else EXACT), f"model={wide_model}", "batch.size=1"]
    one = train(tmp_path / "one", *more, "batch.accumulate=4", config=config)
    meshes = {
        "replicate-4": (1, ["mesh.replicate=4"]),
        "shard-4": (1, ["mesh.shard=4"]),
        "replicate-2-shard-2": (1, ["mesh.replicate=2", "mesh.shard=2"]),
        "replicate-2-tensor-2": (2, ["mesh.replicate=2", "mesh.tensor=2", "mesh.sequence=false"]),
        "shard-2-tensor-2": (2, ["mesh.shard=2", "mesh.tensor=2"]),
    }
    group(
        4,
        [
            arguments(tmp_path / name, *more, f"batch.accumulate={accumulate}", *mesh, config=config)
            for name, (accumulate, mesh) in meshes.items()
        ],
    )
    for name in meshes:
        assert_same(tmp_path / name, one)
    saved = tmp_path / "shard-2-tensor-2"
    by_one = train(after(saved, 2, tmp_path / "by-one"), *more, "batch.accumulate=4", "resume=auto", config=config)
    assert_same(by_one, one)
    by_two = after(saved, 2, tmp_path / "by-two")
    group(2, [arguments(by_two, *more, "batch.accumulate=2", "mesh.shard=2", "resume=auto", config=config)])
    assert_same(by_two, one)


@pytest.mark.slow
def test_in_float32_losses_agree_to_its_precision(
    tmp_path: Path, group: Group, arguments: Arguments, train: Callable[..., Path], losses: Losses
) -> None:
    more = ["model.dtype=float32", "optimizer.eps=1e-3", "batch.size=1"]
    one = train(tmp_path / "one", *more, "batch.accumulate=4")
    runs = {"shard": ["mesh.shard=2", "mesh.tensor=2", "batch.accumulate=2"], "replicate": ["mesh.replicate=4"]}
    group(4, [arguments(tmp_path / name, *more, *mesh) for name, mesh in runs.items()])
    for name in runs:
        assert losses(tmp_path / name) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
def test_half_precision_over_shards_keeps_masters(
    tmp_path: Path, group: Group, arguments: Arguments, losses: Losses
) -> None:
    more = ["model.dtype=bfloat16", "mesh.shard=2", "steps=8"]
    group(2, [arguments(tmp_path / "run", *more), arguments(tmp_path / "off", *more, "mesh.offload=true")])
    for name in ("run", "off"):
        found = losses(tmp_path / name)
        assert found[8] < 0.9 * found[1]
    held = read_safetensors(tmp_path / "run" / "final" / ".." / "trainer" / "optimizer-00001.safetensors")
    assert {str(t.dtype) for name, t in held.items() if name.endswith("/master")} == {"torch.float32"}


@pytest.mark.slow
def test_a_run_is_started_in_several_processes(tmp_path: Path, arguments: Arguments, start: Any) -> None:
    """`peg run --nproc`: one speaks, a signal stops all, a mistake is told once."""
    command = arguments(tmp_path / "run", "mesh.replicate=2", "steps=3")
    child = start([command[0], "--nproc", "2", *command[1:]])
    _, err = child.communicate()
    assert child.returncode == 0, err
    assert (tmp_path / "run" / "step-00000003" / "trainer" / "weights-00000.safetensors").is_file()

    child = start([command[0], "--nproc", "2", *arguments(tmp_path / "bad", "steps=3")[1:]])
    _out, err = child.communicate()
    assert child.returncode in (1, 2)
    assert err.count("error:") == 1
    assert "there are 2" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi3"])
def test_other_families_are_split_too(
    tmp_path: Path,
    group: Group,
    arguments: Arguments,
    train: Callable[..., Path],
    family_model: FamilyModel,
    family: str,
) -> None:
    """Norms after a half, soft caps, parameters of several parts."""
    more = [*FULL, f"model={family_model(family)}"]
    one = train(tmp_path / "one", *more, "batch.accumulate=2")
    meshes = {"tensor": (2, "mesh.tensor=2"), "shard": (1, "mesh.shard=2")}
    group(
        2,
        [
            arguments(tmp_path / name, *more, f"batch.accumulate={accumulate}", mesh)
            for name, (accumulate, mesh) in meshes.items()
        ],
    )
    for name in meshes:
        assert_same(tmp_path / name, one)
    again = [*more, "batch.accumulate=2", "resume=auto"]
    assert_same(train(after(tmp_path / "tensor", 2, tmp_path / "by-one"), *again), one)
    by_two = after(one, 2, tmp_path / "by-two")
    group(2, [arguments(by_two, *again, "mesh.tensor=2")])
    assert_same(by_two, one)
