from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from pegboard_plot.curves import draw_metric
from pegboard_plot.runs import read_runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"step": step, "loss": 4 / step, "tokens": 100, "lr": 1e-4} for step in range(1, 21)]
    rows[9]["validation/loss"] = rows[19]["validation/loss"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_picture_beside_the_metrics(peg: Any, run: Path) -> None:
    said = peg("plot", run)
    assert (said.status, said.out) == (0, f"{run / 'curves.png'}\n")
    picture = matplotlib.image.imread(run / "curves.png")
    assert picture.shape[1] > 500
    # Something other than white was drawn, in the colour of the first run among others.
    assert ((picture[..., 0] < 0.1) & (picture[..., 2] > 0.6)).sum() > 100


def test_several_runs_and_metrics(peg: Any, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    said = peg("plot", run, run, "--metric", "loss", "--metric", "lr", "--x", "tokens", "--smooth", "0.9", "--log")
    assert (said.status, said.out) == (0, "curves.png\n")
    assert peg("plot", run.parent, "--out", "all.svg").status == 0
    assert (tmp_path / "all.svg").read_text().startswith("<?xml")


def test_lines_are_the_numbers(run: Path) -> None:
    axes = Figure().subplots()
    runs = read_runs([run])
    draw_metric(axes, runs, "loss", smooth=0.5)
    raw, smooth, held_out = axes.get_lines()
    assert list(raw.get_xydata()[3]) == [4, 1.0]
    assert smooth.get_label() == "first" and held_out.get_label() == "first, validation"
    assert held_out.get_xydata().tolist() == [[10, 0.5], [20, 0.5]]
    assert len(smooth.get_xydata()) == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metric", "los"), "did you mean 'loss'"),
        (("--out", "x.doc"), "is no picture"),
        (("--out", "/nowhere/x.png"), "does not exist"),
        (("--smooth", "1"), "smooth"),
    ],
)
def test_mistakes_are_named(peg: Any, run: Path, options: tuple[str, ...], said: str) -> None:
    answer = peg("plot", run, *options)
    assert answer.status == 2
    assert said in answer.err
