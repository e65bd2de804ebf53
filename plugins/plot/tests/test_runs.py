from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pegboard.errors import DataError
from pegboard_plot.curves import smoothed
from pegboard_plot.runs import check_metric, read_runs


def write(folder: Path, rows: Sequence[Mapping[str, object]], end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return folder


def test_a_run_has_series_over_steps_and_tokens(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "validation/loss": 4.0},
        {"step": 2, "loss": 3.0, "tokens": 10},
        {"step": 4, "loss": None, "tokens": 20, "note": "text"},
        {"step": 6, "loss": 1.0, "tokens": 30},
    ]
    (run,) = read_runs([write(tmp_path / "run", rows, end='{"step": 8, "lo')])
    assert run.name == "run"
    assert run.names == ["validation/loss", "loss", "tokens"]
    assert run.series("loss") == [(2, 3.0), (6, 1.0)]
    assert run.series("loss", "tokens") == [(10, 3.0), (60, 1.0)]
    assert run.series("validation/loss", "tokens") == [(0, 4.0)]
    assert (run.last("loss"), run.last("reward")) == (1.0, None)


def test_folders_of_runs_and_files_are_runs_too(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / "sweep" / name, [{"step": 1, "loss": 1.0}])
    write(tmp_path / "other" / "a", [{"step": 1, "loss": 2.0}])
    file = tmp_path / "copy.jsonl"
    file.write_text('{"step": 1, "loss": 3}\n')
    found = read_runs([tmp_path / "sweep", tmp_path / "other" / "a", file])
    assert [run.name for run in found] == ["sweep/a", "sweep/b", "other/a", f"{tmp_path.name}/copy.jsonl"]
    assert [run.last("loss") for run in found] == [1.0, 1.0, 2.0, 3.0]


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no run"):
        read_runs([tmp_path])
    folder = write(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    (folder / "metrics.jsonl").write_text('[1]\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 1 is no line of metrics"):
        read_runs([folder])


def test_an_unknown_metric_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    found = read_runs([write(tmp_path / "run", [{"step": 1, "loss": 1.0, "validation/reward": 2.0}])])
    check_metric(found, "reward")
    with pytest.raises(DataError, match="did you mean 'loss'") as caught:
        check_metric(found, "los")
    assert caught.value.fix == "choose of: loss, validation/reward"


def test_a_smoothed_constant_is_itself_and_a_step_follows_slowly() -> None:
    assert [value for _, value in smoothed([(i, 3.0) for i in range(5)], 0.9)] == pytest.approx([3.0] * 5)
    values = [value for _, value in smoothed([(0, 0.0), (1, 1.0), (2, 1.0)], 0.5)]
    assert values == pytest.approx([0.0, 0.5 / 0.75, 0.75 / 0.875])
