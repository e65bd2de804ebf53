"""`peg run qat`: what is trained with rounding, what is left, and that the integers compute what training did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.cli import run_cli
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.weights import read_folder
from pegboard_int4.layers import Int4Linear

Arguments = Callable[..., list[str]]
Losses = Callable[[Path], dict[int, float]]
IDS = torch.tensor([5, 17, 99, 3, 140, 7])


def qat(arguments: Arguments, output: Path, *more: str, config: str = "full") -> list[str]:
    given = arguments(output, "quantizer.group=16", *more, config=config)
    return ["run", "qat", *given[2:]]


@torch.no_grad()
def logits(location: Path, quantizer: Any = None) -> torch.Tensor:
    registry = Registry.discover()
    built = open_any(registry, str(location)).build(registry, platform="cpu", dtype="float32", quantizer=quantizer)
    if quantizer is None and location.name == "converted":
        assert any(isinstance(module, Int4Linear) for module in built.model.modules())
    return built.model.head(built.model(IDS, built.context([len(IDS)], torch.arange(len(IDS)))))


@pytest.mark.parametrize("config", ["full", "lora"])
def test_a_run_learns_and_leaves_integers(
    tmp_path: Path, arguments: Arguments, losses: Losses, toy_model: Path, config: str
) -> None:
    more = ["steps=12", "data.validation=6", "optimizer.lr=0.02"]
    assert run_cli(qat(arguments, tmp_path / "run", *more, config=config)) == 0
    run = tmp_path / "run"
    found = losses(run)
    assert found[12] < 0.9 * found[1]
    assert (run / "final" / ("adapter_model.safetensors" if config == "lora" else "model.safetensors")).is_file()
    names = set(read_folder(run / "converted"))
    packed = {name for name in names if name.endswith(".weight_packed")}
    assert len(packed) == 14 and len(names) == 3 * 14 + 6
    assert {path.name for path in (run / "converted").iterdir()} >= {"tokenizer.json", "config.json"}
    trained, converted = logits(run / "final", {"use": "int4_qat", "group": 16}), logits(run / "converted")
    torch.testing.assert_close(converted, trained, rtol=1e-4, atol=1e-4)
    plain = logits(run / "final")
    assert 0 < (converted - plain).std() < 0.3 * plain.std()


def test_rounding_starts_late_and_a_resumed_run_knows(tmp_path: Path, arguments: Arguments, losses: Losses) -> None:
    """Steps before the start are those of a plain run; a run that was cut in two is the one that was not."""
    plain = tmp_path / "plain"
    assert run_cli(arguments(plain, "steps=6")) == 0
    runs = {}
    for name, start in (("late", 4), ("always", 0)):
        runs[name] = tmp_path / name
        more = ["steps=6", f"quantizer.start_step={start}", "convert=false", "checkpoint.every=3"]
        assert run_cli(qat(arguments, runs[name], *more)) == 0
        assert not (runs[name] / "converted").exists()
    without, late, always = losses(plain), losses(runs["late"]), losses(runs["always"])
    assert [late[step] == pytest.approx(without[step], rel=1e-6) for step in range(1, 7)] == [True] * 4 + [False] * 2
    assert always[1] != pytest.approx(without[1], rel=1e-6)
    again = tmp_path / "again"
    resume = [f"resume={runs['late'] / 'step-00000003'}", "steps=6", "quantizer.start_step=4", "checkpoint.every=3"]
    assert run_cli(qat(arguments, again, *resume)) == 0
    assert {step: losses(again)[step] for step in (4, 5, 6)} == {step: late[step] for step in (4, 5, 6)}


def test_what_cannot_be_rounded_is_said(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "q_proj has 32 inputs, no multiple of quantizer.group=64": ["quantizer.group=64"],
        "with which dropout cannot be combined": ["adapter={use: lora, dropout: 0.1}"],
        "with which DoRA cannot be combined": ["adapter={use: dora}"],
    }
    for message, more in cases.items():
        assert run_cli(qat(arguments, tmp_path / "run", *more)) != 0
        assert message in capsys.readouterr().err


def test_quantised_weights_without_an_adapter_are_refused(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(arguments(tmp_path / "run", "quantizer=nf4")) != 0
    assert "weights are quantised, by Nf4Quantizer, and cannot be trained" in capsys.readouterr().err


def test_converting_and_merging_quantised_folders(tmp_path: Path, toy_model: Path, train: Any) -> None:
    """convert --quantizer writes what is read as the quantizer would make it; an adapter over it merges into its values."""
    four = tmp_path / "four"
    assert run_cli(["convert", str(toy_model), str(four), "--to", "hf", "--quantizer", "nf4"]) == 0
    assert json.loads((four / "config.json").read_text())["quantization_config"]["quant_method"] == "bitsandbytes"
    assert torch.equal(logits(four), logits(toy_model, "nf4"))
    assert run_cli(["convert", str(four), str(tmp_path / "back"), "--to", "hf"]) == 0
    torch.testing.assert_close(logits(tmp_path / "back"), logits(four), rtol=1e-5, atol=1e-5)
    run = train(tmp_path / "run", f"model={four}", "quantizer=null", "steps=2", config="qlora")
    assert run_cli(["merge", str(run / "final"), str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(run / "final"), rtol=1e-5, atol=1e-5)
    for source, target, quantizer in ((four, "gguf", "nf4"), (four, "hf", "nf4"), (toy_model, "hf", "int8")):
        given = ["convert", str(source), str(tmp_path / "no"), "--to", target, "--quantizer", quantizer]
        assert run_cli(given) == 2 and not (tmp_path / "no").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "config", "more"),
    [
        ("sft", "qlora", ["optimizer.lr=0.001"]),
        ("sft", "full", ["optimizer={use: adam8bit, lr: 1.0e-5}"]),
        ("qat", "full", ["optimizer.lr=0.00001"]),
        ("qat", "lora", ["optimizer.lr=0.001"]),
    ],
)
def test_smollm2(
    tmp_path: Path, smollm2: Path, data: Path, losses: Losses, recipe: str, config: str, more: list[str]
) -> None:
    """A few steps over the real weights: the loss falls; of `qat`, on the integers too."""
    run = tmp_path / "run"
    given = [f"model={smollm2}", f"data.path={data}", f"output={run}", "data.format=instruct", "steps=5"]
    small = ["model.dtype=float32", "batch.size=4", "batch.length=64", "schedule=constant", "loggers=[jsonl]"]
    assert run_cli(["run", recipe, "--config", config, *given, *small, *more]) == 0
    found = losses(run)
    assert found[5] < 0.9 * found[1]
    if recipe == "qat":
        registry = Registry.discover()
        ids = torch.tensor([504, 3575, 282, 4649, 314])
        both = []
        for location, quantizer in ((run / "converted", None), (run / "final", "int4_qat")):
            built = open_any(registry, str(location)).build(registry, dtype="float32", quantizer=quantizer)
            with torch.no_grad():
                both.append(built.model.head(built.model(ids, built.context([5], torch.arange(5)))))
        assert (both[0] - both[1]).norm() < 0.02 * both[1].norm()
