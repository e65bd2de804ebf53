"""`peg convert` from and to Hugging Face folders."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pegboard.cli import run_cli
from pegboard.weights.read import SafetensorsTensor

MakeFolder = Callable[..., dict[str, torch.Tensor]]


def test_a_folder_is_written_whole(make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = make_folder(tmp_path / "in", shards=2)
    assert run_cli(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 4 tensors\n"
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "tiny", "hidden_size": 8, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    kept = ["LICENSE", "additional_chat_templates/tool_use.jinja", "chat_template.jinja", "tokenizer.json"]
    for name in [*kept, "generation_config.json"]:
        before, after = tmp_path / "in" / name, tmp_path / "out" / name
        assert (
            json.loads(after.read_text()) == json.loads(before.read_text())
            if ".json" in name
            else (after.read_bytes() == before.read_bytes())
        )


def test_numbers_get_another_dtype(make_folder: MakeFolder, tmp_path: Path) -> None:
    weights = make_folder(tmp_path / "in")
    assert run_cli(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "hf", "--dtype", "float32"]) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], value.float()) for name, value in weights.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_one_tensor_is_held_at_a_time(make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_folder(tmp_path / "in", hidden=64)
    held = {"now": 0, "peak": 0}
    load = SafetensorsTensor.load

    def watched(self: SafetensorsTensor) -> torch.Tensor:
        tensor = load(self)
        held["now"] += tensor.nbytes
        held["peak"] = max(held.values())
        weakref.finalize(tensor.untyped_storage(), lambda size: held.update(now=held["now"] - size), tensor.nbytes)
        return tensor

    monkeypatch.setattr(SafetensorsTensor, "load", watched)
    assert run_cli(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert held == {"now": 0, "peak": next(iter(weights.values())).nbytes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in", "in", "--to", "hf"], "in exists"),
        (["in", "a/b", "--to", "hf"], "does not exist"),
        (["in", "out", "--to", "hff"], "did you mean 'hf'"),
        (["in", "out", "--to", "hf", "--dtype", "int4"], "dtype is 'int4'"),
        (["./none", "out", "--to", "hf"], "there is no file or folder"),
        (["damaged", "out", "--to", "hf"], "truncated"),
    ],
)
def test_mistakes_write_nothing(
    make_folder: MakeFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    make_folder(tmp_path / "in")
    make_folder(tmp_path / "damaged")
    path = tmp_path / "damaged" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.chdir(tmp_path)
    assert run_cli(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged", "in"]
