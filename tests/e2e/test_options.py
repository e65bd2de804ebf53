"""Options of a run that must not change what it learns, and those that must."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.cli import run_cli
from pegboard.weights import read_safetensors

Train = Callable[..., Path]
Losses = Callable[[Path], dict[int, float]]

SHORT = ["model.dtype=float64", "steps=3", "clip=null", "checkpoint.last=true"]
SAME = {
    "recompute": ["memory.recompute=all"],
    "cheap": ["memory.recompute=cheap", "memory.every=2"],
    "offload": ["memory.offload=true"],
    "backward": ["memory.update_in_backward=true"],
    "background": ["checkpoint.background=true", "checkpoint.every=1", "checkpoint.keep=1"],
    "deterministic": ["deterministic=true", "profile.first=2"],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Path:
    return train(tmp_path_factory.mktemp("plain") / "run", *SHORT)


def weights(run: Path, folder: str = "final") -> dict[str, torch.Tensor]:
    return {name: lazy.load() for name, lazy in read_safetensors(run / folder / "model.safetensors").items()}


@pytest.mark.parametrize("name", SAME)
def test_how_memory_is_saved_changes_nothing(
    tmp_path: Path, train: Train, losses: Losses, plain: Path, name: str
) -> None:
    run = train(tmp_path / "run", *SHORT, *SAME[name])
    assert losses(run) == pytest.approx(losses(plain), rel=1e-12)
    expected = weights(plain)
    for key, value in weights(run).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-12)
    folders = sorted(path.name for path in run.glob("step-*"))
    assert folders == ["step-00000003"]
    if name == "deterministic":
        (trace,) = (run / "profile").iterdir()
        assert trace.name == "step-00000002-rank-0.trace.json"
        assert json.loads(trace.read_text())["traceEvents"]
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_update_in_the_backward_pass_is_resumed(tmp_path: Path, train: Train, plain: Path) -> None:
    run = train(tmp_path / "run", *SHORT, *SAME["backward"], "steps=2", "schedule=constant")
    train(run, *SHORT, *SAME["backward"], "schedule=constant", "resume=auto")
    whole = train(tmp_path / "whole", *SHORT, *SAME["backward"], "schedule=constant")
    assert all(value.equal(weights(whole)[key]) for key, value in weights(run).items())


def test_what_needs_all_gradients_is_refused(
    tmp_path: Path, arguments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(arguments(tmp_path / "run", "memory.update_in_backward=true")) != 0
    assert "clip" in capsys.readouterr().err
    assert run_cli(arguments(tmp_path / "run", "freeze=[model.layer.0.*]")) != 0
    assert "no parameter matches 'model.layer.0.*'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_stay_and_averages_are_written(tmp_path: Path, train: Train, toy_model: Path) -> None:
    more = ["freeze=[model.embed_tokens.*, 'model.layers.0.*']", "average.decay=0.5", "noise=5", "data.validation=6"]
    run = train(tmp_path / "run", *SHORT, *more, "checkpoint.every=1", "checkpoint.keep=null")
    before = {n: t.load().double() for n, t in read_safetensors(toy_model / "model.safetensors").items()}
    after, average = weights(run), weights(run / "step-00000003", "average")
    for name, value in after.items():
        fixed = name.startswith(("model.embed_tokens.", "model.layers.0."))
        assert value.equal(before[name]) is fixed, name
    expected = {name: value.clone() for name, value in before.items()}
    for step in (1, 2, 3):
        decay = min(0.5, (1 + step) / (10 + step))
        now = weights(run / f"step-{step:08d}", "model")
        expected = {name: decay * value + (1 - decay) * now[name] for name, value in expected.items()}
    for name, value in average.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)
    resumed = train(tmp_path / "resumed", *SHORT, *more, f"resume={run / 'step-00000001'}")
    found = weights(resumed / "step-00000003", "average")
    assert all(value.equal(average[name]) for name, value in found.items())


def test_a_run_that_gets_no_better_stops_and_keeps_its_best(tmp_path: Path, train: Train, losses: Losses) -> None:
    more = ["validation.every=1", "validation.patience=2", "validation.margin=100", "data.validation=6", "steps=9"]
    run = train(tmp_path / "run", *more, "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.keep_best=true")
    assert list(losses(run)) == [1, 2]  # the measurement before the first step is the best one
    run = train(tmp_path / "other", *more[:1], *more[3:], "validation.margin=0", "steps=3", "optimizer.lr=0.5", *CHECKS)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line and line["step"]}
    best = min([*held_out], key=held_out.__getitem__)
    kept = sorted(path.name for path in run.glob("step-*"))
    before = next(line["validation/loss"] for line in lines if "validation/loss" in line)
    expected = {"step-00000003"} | ({f"step-{best:08d}"} if held_out[best] < before else set())
    assert set(kept) == expected


CHECKS = ["checkpoint.every=1", "checkpoint.keep=1", "checkpoint.keep_best=true", "schedule=constant"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the compiler itself imports warns
def test_compiled_layers_learn_the_same(tmp_path: Path, train: Train, losses: Losses) -> None:
    plain = train(tmp_path / "plain", "steps=3")
    run = train(tmp_path / "run", "steps=3", "memory.compile=true")
    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)


def test_an_adapter_is_merged_before_all_weights_are_trained(
    tmp_path: Path, train: Train, arguments: Any, losses: Losses, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = train(tmp_path / "adapter", "steps=8", "data.validation=6", config="lora")
    run = train(tmp_path / "run", f"model={adapter / 'final'}", "steps=1", "data.validation=6")
    lines = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[index])
        for folder, index in ((adapter, -1), (run, 0))
    ]
    assert lines[0]["validation/loss"] == pytest.approx(lines[1]["validation/loss"], rel=1e-5)
    assert "model.embed_tokens.weight" in weights(run)
    assert run_cli(arguments(tmp_path / "other", f"model={adapter / 'final'}", config="lora")) != 0
    assert "is an adapter already" in capsys.readouterr().err
