"""`peg sweep` and `peg plot` over real training runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_the_better_rate_comes_first(peg: Any, toy_model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    settings = [f"model={toy_model}", f"data.path={data}", "data.format=instruct", "data.validation=6", "steps=8"]
    small = ["model.dtype=float32", "model.platform=cpu", "batch.size=2", "batch.length=64", "loggers=[jsonl]"]
    varied = ["optimizer.lr=1e-6,2e-2", "seed=1,2"]
    command = [
        "sweep",
        "sft",
        "--config",
        "lora",
        *settings,
        *small,
        *varied,
        "--output",
        folder,
        "--jobs",
        "2",
        "--json",
    ]
    said = peg(*command)
    assert said.status == 0, said.err
    rows = json.loads(said.out)
    assert [row["optimizer.lr"] for row in rows] == ["2e-2", "2e-2", "1e-6", "1e-6"]
    assert rows[0]["validation/loss"] < 0.9 * rows[-1]["validation/loss"]
    for row in rows:
        lines = [json.loads(line) for line in (Path(row["folder"]) / "metrics.jsonl").read_text().splitlines()]
        held_out = [line["validation/loss"] for line in lines if "validation/loss" in line]
        assert row["validation/loss"] == held_out[-1]
        assert (Path(row["folder"]) / "final" / "adapter_model.safetensors").is_file()
    assert json.loads(peg(*command).out) == rows
    assert peg("plot", folder, "--metric", "loss", "--metric", "mfu", "--out", tmp_path / "c.png").status == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "sweep.png").is_file()
