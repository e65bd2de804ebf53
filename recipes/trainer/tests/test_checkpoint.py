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
    check_same,
    differences,
    find_resume,
    load_step,
    mark_final,
    prune,
    save_step,
    step_folders,
)
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


def write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_weights_optimizer_and_random_numbers_come_back(tmp_path: Path, rounding: Any) -> None:
    factory = AdamWFactory(AdamWOptions(lr=0.1, rounding=rounding))
    torch.manual_seed(5)
    first = named()
    optimizer = factory.build(first)
    descend(first, optimizer, 3)
    folder = save_step(tmp_path, 3, write_model, first, optimizer, {"data": {"next": [0, 1, 0]}})
    descend(first, optimizer, 2)

    second = named(seed=9)
    other = factory.build(second)
    torch.manual_seed(6)
    saved = load_step(folder, second, other)
    assert (saved["step"], saved["data"]) == (3, {"next": [0, 1, 0]})
    descend(second, other, 2)
    for (_, one), (_, two) in zip(first, second, strict=True):
        assert one.equal(two)
        for key, value in optimizer.state[one].items():
            assert value.equal(other.state[two][key])
            assert value.dtype == torch.float32


def test_an_optimizer_of_somebody_elses_keeps_values_that_are_no_tensors(tmp_path: Path) -> None:
    first = named(torch.float32)
    optimizer = torch.optim.SGD([p for _, p in first], lr=0.1, momentum=0.9)
    descend(first, optimizer, 2)
    optimizer.state[first[0][1]]["seen"] = 7
    folder = save_step(tmp_path, 2, write_model, first, optimizer, {})
    second = named(torch.float32, seed=4)
    other = torch.optim.SGD([p for _, p in second], lr=0.1, momentum=0.9)
    load_step(folder, second, other)
    assert other.state[second[0][1]]["seen"] == 7
    descend(first, optimizer, 1)
    load_step(folder, second, other)
    descend(second, other, 1)
    assert first[0][1].equal(second[0][1])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    factory = AdamWFactory(AdamWOptions(lr=0.1))
    first = named()
    folder = save_step(tmp_path, 1, write_model, first, factory.build(first), {})
    other = named(rows=2)
    with pytest.raises(ModelError, match="holds other trained weights"):
        load_step(folder, other, factory.build(other))


def test_old_steps_go_and_the_newest_stay(tmp_path: Path) -> None:
    parameters = named()
    optimizer = AdamWFactory(AdamWOptions(lr=0.1)).build(parameters)
    for step in (2, 10, 100):
        save_step(tmp_path, step, write_model, parameters, optimizer, {})
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


def test_there_may_be_nothing_to_resume(tmp_path: Path) -> None:
    assert find_resume("auto", tmp_path / "absent") is None
    for name in ("absent", "step-00000007"):
        with pytest.raises(ConfigError):
            find_resume(str(tmp_path / name), tmp_path)


def test_all_that_is_on_disk_is_safetensors_and_json(tmp_path: Path) -> None:
    parameters = named()
    folder = save_step(tmp_path, 1, write_model, parameters, AdamWFactory(AdamWOptions(lr=0.1)).build(parameters), {})
    assert {path.suffix for path in (folder / "trainer").iterdir()} == {".safetensors", ".json"}
    json.loads((folder / "trainer" / "state.json").read_text())


def test_what_differs_is_named(tmp_path: Path) -> None:
    saved = {"seed": 1, "data": {"use": "jsonl", "format": {"use": "chat"}}, "clip": None}
    now = {"seed": 1, "data": {"use": "jsonl", "format": {"use": "text"}, "end": True}, "clip": 1.0}
    assert list(differences(saved, saved)) == []
    with pytest.raises(ConfigError, match=r"other values of clip, data\.end, data\.format\.use,"):
        check_same(saved, now)
