"""`peg run sft` with each of its configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.config import load_config
from pegboard.plugins.load import Registry
from pegboard.weights import read_folder, read_safetensors

Train = Callable[..., Path]
Losses = Callable[[Path], dict[int, float]]


@pytest.mark.parametrize("config", ["full", "lora", "dora", "qlora"])
def test_a_run_learns_and_leaves_a_complete_folder(
    tmp_path: Path, train: Train, losses: Losses, config: str, toy_model: Path
) -> None:
    more = ["steps=12", "data.validation=6", "checkpoint.every=5", "checkpoint.keep=2", "validation.every=6"]
    run = train(tmp_path / "run", *more, "optimizer.lr=0.02", config=config)
    found = losses(run)
    assert list(found) == list(range(1, 13))
    assert found[12] < 0.9 * found[1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    assert list(held_out) == [0, 6, 12]
    assert held_out[12] < held_out[0]
    names = sorted(path.name for path in run.iterdir())
    assert names == ["config.yaml", "env.json", "final", "metrics.jsonl", "step-00000010", "step-00000012"]
    assert (run / "final").resolve() == (run / "step-00000012" / "model").resolve()
    inside = {path.name for path in (run / "final").iterdir()}
    weights = (
        {"adapter_config.json", "adapter_model.safetensors"}
        if config != "full"
        else {"config.json", "model.safetensors"}
    )
    assert inside == weights | {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    trainer = sorted(path.name for path in (run / "step-00000012" / "trainer").iterdir())
    assert trainer == ["optimizer.safetensors", "random.safetensors", "state.json", "weights.safetensors"]
    if config == "full":
        assert {n: t.shape for n, t in read_folder(run / "final").items()} == {
            n: t.shape for n, t in read_folder(toy_model).items()
        }
    else:
        settings = json.loads((run / "final" / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(toy_model)
        assert settings["use_dora"] is (config == "dora")


def test_plain_text_is_learned(tmp_path: Path, train: Train, losses: Losses) -> None:
    text = tmp_path / "book.txt"
    text.write_text("five and two\nmake seven\n\n" * 20)
    run = train(tmp_path / "run", "data.use=text", f"data.path={text}", "data.format=text", "steps=10")
    found = losses(run)
    assert found[10] < 0.5 * found[1]


def test_without_steps_a_run_is_one_epoch(tmp_path: Path, train: Train, losses: Losses) -> None:
    run = train(tmp_path / "run", "~steps", "batch.pack=false", "batch.size=4", "batch.accumulate=2")
    assert list(losses(run)) == [1, 2, 3, 4]  # 30 rows, 8 a step


def weights_after(run: Path) -> dict[str, torch.Tensor]:
    return {name: lazy.load() for name, lazy in read_safetensors(run / "final" / "model.safetensors").items()}


def test_gradients_are_exact_however_a_step_is_divided(tmp_path: Path, train: Train, losses: Losses) -> None:
    """In float64 the same six examples a step, in one batch or in two or six, give the same weights."""
    runs = []
    for size, accumulate in ((6, 1), (3, 2), (1, 6)):
        more = [f"batch.size={size}", f"batch.accumulate={accumulate}", "batch.pack=false", "model.dtype=float64"]
        runs.append(train(tmp_path / f"{size}x{accumulate}", *more, "steps=4", "clip=0.5"))
    first, *others = [(weights_after(run), losses(run)) for run in runs]
    for weights, found in others:
        assert found == pytest.approx(first[1], rel=1e-12)
        for name, value in weights.items():
            torch.testing.assert_close(value, first[0][name], rtol=1e-9, atol=1e-10)


def test_packing_changes_batches_and_no_example(tmp_path: Path, train: Train) -> None:
    """One step over an epoch is the same step, packed or not. A large eps keeps Adam from turning rounding into signs."""
    more = ["model.dtype=float64", "~steps", "batch.length=512", "optimizer.eps=0.001"]
    packed = train(tmp_path / "packed", *more, "batch.size=8", "batch.pack=true")
    plain = train(tmp_path / "plain", *more, "batch.size=30", "batch.pack=false")
    one, other = weights_after(packed), weights_after(plain)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-10)


def test_the_config_beside_a_run_runs_it_again_exactly(tmp_path: Path, train: Train, arguments: Any) -> None:
    from pegboard.cli import run_cli

    first = train(tmp_path / "first", "adapter.dropout=0.1", config="lora")
    assert run_cli(["run", "sft", "--config", str(first / "config.yaml"), f"output={tmp_path / 'second'}"]) == 0
    kept = [(folder / "final" / "adapter_model.safetensors").read_bytes() for folder in (first, tmp_path / "second")]
    assert kept[0] == kept[1]
    registry = Registry.discover()
    configs = [load_config(registry, "sft", folder / "config.yaml") for folder in (first, tmp_path / "second")]
    assert configs[0] == {**configs[1], "output": str(first)}


def test_16_bit_weights_keep_a_float32_copy(tmp_path: Path, train: Train, losses: Losses) -> None:
    run = train(tmp_path / "run", "model.dtype=bfloat16", "checkpoint.every=3")
    held = read_safetensors(run / "step-00000006" / "trainer" / "optimizer.safetensors")
    assert {str(t.dtype) for name, t in held.items() if name.endswith("/master")} == {"torch.float32"}
    assert {str(t.dtype) for t in read_folder(run / "final").values()} == {"torch.bfloat16"}
    assert json.loads((run / "final" / "config.json").read_text())["dtype"] == "bfloat16"


def test_plugins_may_be_disabled_in_a_config(tmp_path: Path, train: Train) -> None:
    run = train(tmp_path / "run", "steps=1", "plugins.disabled=[pegboard-cuda]")
    assert "pegboard-cuda" in (run / "config.yaml").read_text()


def test_an_adapter_goes_where_the_family_says(
    tmp_path: Path, train: Callable[..., Path], family_model: Callable[[str], Path]
) -> None:
    """Phi has q, k and v in one layer; nobody named it."""
    run = train(tmp_path / "run", f"model={family_model('phi3')}", "steps=2", config="lora")
    settings = json.loads((run / "final" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["qkv_proj", "o_proj"]
    assert len(read_safetensors(run / "final" / "adapter_model.safetensors")) == 2 * 2 * 2
