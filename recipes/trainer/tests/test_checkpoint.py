from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pegboard.errors import ConfigError, ModelError
from pegboard_trainer.adamw import AdamWFactory
from pegboard_trainer.checkpoint import (
    Trained,
    check_same,
    differences,
    find_resume,
    load_step,
    mark_final,
    prune,
    snapshot,
    step_folders,
    write_trainer,
)
from pegboard_trainer.disk import whole_folder
from pegboard_trainer.options import AdamWOptions

Named = list[tuple[str, nn.Parameter]]


def named(dtype: torch.dtype = torch.bfloat16, rows: int = 3, seed: int = 0) -> Named:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (rows, 4), "b": (4,)}
    return [(n, nn.Parameter(torch.randn(s, generator=generator).to(dtype))) for n, s in shapes.items()]


def descend(parameters: Named, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Gradients come from torch's random numbers, so that their state counts."""
    for _ in range(steps):
        for _, parameter in parameters:
            parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
        optimizer.step()


def save_step(run: Path, step: int, parameters: Named, optimizer: torch.optim.Optimizer, state: Any = None) -> Path:
    target = run / f"step-{step:08d}"
    with whole_folder(target) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "trainer").mkdir()
        write_trainer(folder / "trainer", step, Trained(parameters, optimizer), state or {}, {})
    return target


def load(folder: Path, parameters: Named, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return load_step(folder, Trained(parameters, optimizer))[0]


@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_weights_optimizer_and_random_numbers_come_back(tmp_path: Path, rounding: Any) -> None:
    factory = AdamWFactory(AdamWOptions(lr=0.1, rounding=rounding))
    torch.manual_seed(5)
    first = named()
    optimizer = factory.build(first)
    descend(first, optimizer, 3)
    folder = save_step(tmp_path, 3, first, optimizer, {"data": {"next": [0, 1, 0]}})
    descend(first, optimizer, 2)

    second = named(seed=9)
    other = factory.build(second)
    torch.manual_seed(6)
    saved = load(folder, second, other)
    assert (saved["step"], saved["data"]) == (3, {"next": [0, 1, 0]})
    descend(second, other, 2)
    for (_, one), (_, two) in zip(first, second, strict=True):
        assert one.equal(two)
        kept, found = optimizer.state[one], other.state[two]
        assert kept.pop("step") == found.pop("step") == 5
        for key, value in kept.items():
            assert value.equal(found[key])
            assert value.dtype == torch.float32


def test_a_snapshot_is_what_was_whatever_comes_after(tmp_path: Path) -> None:
    first = named()
    factory = AdamWFactory(AdamWOptions(lr=0.1, rounding="master"))
    optimizer = factory.build(first)
    descend(first, optimizer, 2)
    (tmp_path / "now").mkdir()
    (tmp_path / "later").mkdir()
    write_trainer(tmp_path / "now", 2, Trained(first, optimizer), {}, {"rollout": torch.arange(3)})
    kept = snapshot(Trained(first, optimizer))
    descend(first, optimizer, 2)
    write_trainer(tmp_path / "later", 2, kept, {}, {"rollout": torch.arange(3)})
    files = sorted(path.name for path in (tmp_path / "now").iterdir())
    assert "batches.safetensors" in files
    for name in files:
        assert (tmp_path / "now" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()


def test_an_optimizer_of_somebody_elses_keeps_values_that_are_no_tensors(tmp_path: Path) -> None:
    first = named(torch.float32)
    optimizer = torch.optim.SGD([p for _, p in first], lr=0.1, momentum=0.9)
    descend(first, optimizer, 2)
    optimizer.state[first[0][1]]["seen"] = 7
    folder = save_step(tmp_path, 2, first, optimizer)
    second = named(torch.float32, seed=4)
    other = torch.optim.SGD([p for _, p in second], lr=0.1, momentum=0.9)
    load(folder, second, other)
    assert other.state[second[0][1]]["seen"] == 7
    descend(first, optimizer, 1)
    load(folder, second, other)
    descend(second, other, 1)
    assert first[0][1].equal(second[0][1])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    factory = AdamWFactory(AdamWOptions(lr=0.1))
    first = named()
    folder = save_step(tmp_path, 1, first, factory.build(first))
    other = named(rows=2)
    with pytest.raises(ModelError, match="holds other trained weights"):
        load(folder, other, factory.build(other))


def test_old_steps_go_and_the_newest_stay(tmp_path: Path) -> None:
    parameters = named()
    optimizer = AdamWFactory(AdamWOptions(lr=0.1)).build(parameters)
    for step in (2, 10, 100):
        save_step(tmp_path, step, parameters, optimizer)
        mark_final(tmp_path, step)
    (tmp_path / "step-00000500").mkdir()  # not complete, and not ours to remove
    prune(tmp_path, None)
    assert len(step_folders(tmp_path)) == 3
    prune(tmp_path, 2)
    assert [folder.name for folder in step_folders(tmp_path)] == ["step-00000010", "step-00000100"]
    assert (tmp_path / "final" / "config.json").is_file()
    assert find_resume("auto", tmp_path) == tmp_path / "step-00000100"
    assert find_resume(str(tmp_path), tmp_path / "other") == tmp_path / "step-00000100"
    assert find_resume(str(tmp_path / "step-00000010"), tmp_path) == tmp_path / "step-00000010"
    assert find_resume(None, tmp_path) is None


def test_the_best_step_stays_too(tmp_path: Path) -> None:
    parameters = named()
    optimizer = AdamWFactory(AdamWOptions(lr=0.1)).build(parameters)
    for step in (1, 2, 3, 4):
        save_step(tmp_path, step, parameters, optimizer)
    prune(tmp_path, 1, best=2)
    assert [folder.name for folder in step_folders(tmp_path)] == ["step-00000002", "step-00000004"]


def test_there_may_be_nothing_to_resume(tmp_path: Path) -> None:
    assert find_resume("auto", tmp_path / "absent") is None
    for name in ("absent", "step-00000007"):
        with pytest.raises(ConfigError):
            find_resume(str(tmp_path / name), tmp_path)


def test_all_that_is_on_disk_is_safetensors_and_json(tmp_path: Path) -> None:
    parameters = named()
    folder = save_step(tmp_path, 1, parameters, AdamWFactory(AdamWOptions(lr=0.1)).build(parameters))
    assert {path.suffix for path in (folder / "trainer").iterdir()} == {".safetensors", ".json"}
    json.loads((folder / "trainer" / "state.json").read_text())


def test_what_differs_is_named(tmp_path: Path) -> None:
    saved = {"seed": 1, "data": {"use": "jsonl", "format": {"use": "chat"}}, "clip": None}
    now = {"seed": 1, "data": {"use": "jsonl", "format": {"use": "text"}, "end": True}, "clip": 1.0}
    assert list(differences(saved, saved)) == []
    with pytest.raises(ConfigError, match=r"other values of clip, data\.end, data\.format\.use,"):
        check_same(saved, now)
