from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from pegboard_sdk.site import Site


@pytest.fixture
def folder(quick: Site, tmp_path: Path) -> Path:
    return tmp_path / "sweep"


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().split()


def test_a_grid_runs_in_order_and_is_told_best_first(peg: Any, folder: Path) -> None:
    said = peg("sweep", "quick", "x=1,3,2", "size=5", "--output", folder)
    assert said.status == 0, said.err
    assert starts(folder) == ["trial-000", "trial-001", "trial-002"]
    head, *lines = [line.split() for line in said.out.splitlines()]
    assert head == ["trial", "x", "validation/loss", "status", "seconds"]
    assert [line[:4] for line in lines] == [
        ["1", "3", "1.5", "finished"],
        ["2", "2", "2.5", "finished"],
        ["0", "1", "5.5", "finished"],
    ]
    assert "trial 1 of 3: x=3" in said.err and "trial 1: validation/loss 1.5" in said.err
    assert (folder / "trial-000.log").read_text() == "hello from trial-000\n"
    told = json.loads((folder / "trial-002" / "told.json").read_text())
    assert (told["x"], told["size"], told["output"]) == (2, 5, str(folder / "trial-002"))
    assert matplotlib.image.imread(folder / "sweep.png").shape[1] > 500


def test_the_same_command_goes_on_and_more_samples_add_runs(peg: Any, folder: Path) -> None:
    command = ("sweep", "quick", "x=uniform(0,6)", "size=1,2", "--output", folder, "--json", "--samples")
    first = json.loads(peg(*command, "2").out)
    assert len(first) == 2
    again = json.loads(peg(*command, "2").out)
    assert again == first and len(starts(folder)) == 2
    more = json.loads(peg(*command, "3").out)
    assert len(more) == 3 and len(starts(folder)) == 3
    assert {row["trial"]: row["x"] for row in first}.items() <= {row["trial"]: row["x"] for row in more}.items()
    other = peg("sweep", "quick", "x=1,2", "--output", folder)
    assert other.status == 2
    assert "holds another sweep" in other.err


def test_a_run_that_fails_is_told_and_tried_again(peg: Any, folder: Path) -> None:
    said = peg("sweep", "quick", "act=raise,nan", "--output", folder)
    assert said.status == 2
    assert "2 of 2 runs failed" in said.err
    assert f"trial 0: failed with status 1, see {folder / 'trial-000.log'}" in said.err
    assert "trial 1: validation/loss is inf" in said.err
    assert "this run does not work" in (folder / "trial-000.log").read_text()
    assert not (folder / "sweep.png").exists()
    peg("sweep", "quick", "act=raise,nan", "--output", folder)
    assert starts(folder) == ["trial-000", "trial-001"] * 2


def test_jobs_run_side_by_side(peg: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said = peg(
        "sweep",
        "quick",
        "x=1,3",
        "--jobs",
        "2",
        "--devices",
        "4,5",
        "--output",
        folder,
        "--metric",
        "reward",
        "--maximise",
    )
    assert said.status == 0, said.err
    assert [line.split()[:3] for line in said.out.splitlines()[1:]] == [
        ["1", "3", "-0.1"],
        ["0", "1", "-4.1"],
    ]
    # Both began before either ended.
    assert [line.split(":")[0] for line in said.err.splitlines()[:2]] == ["trial 0 of 2", "trial 1 of 2"]
    told = [json.loads((folder / f"trial-{number:03d}" / "told.json").read_text()) for number in (0, 1)]
    assert [t["model"]["device"] for t in told] == [4, 5]
    assert told[0]["OMP_NUM_THREADS"] == str(max(len(os.sched_getaffinity(0)) // 2, 1))


def test_a_signal_lets_runs_save_and_the_sweep_goes_on_later(peg: Any, folder: Path) -> None:
    command = ["sweep", "quick", "act=wait,run", "--output", str(folder)]
    process = subprocess.Popen([sys.executable, "-m", "pegboard", *command], stderr=subprocess.PIPE)
    waiting = folder / "trial-000" / "waiting"
    while not waiting.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert (folder / "trial-000" / "saved").exists()
    assert starts(folder) == ["trial-000"]
    (folder / "go").touch()
    said = peg(*command)
    assert said.status == 0, said.err
    assert starts(folder) == ["trial-000", "trial-000", "trial-001"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x=1,2", "size=1,none"), "x=1 size=none: "),
        (("x=1,-2",), "x=-2: "),
        (("x=1",), "nothing is varied"),
        (("x=log(1,2)",), "say --samples N"),
        (("x=1,2", "output=here"), "leave it out"),
        (("x=1,2", "loggers=[]"), "add the logger jsonl"),
        (("x=1,2", "--devices", "a"), "is no list of devices"),
        (("x=1,2", "--search", "gird"), "gird"),
    ],
)
def test_mistakes_are_told_before_anything_runs(peg: Any, folder: Path, arguments: tuple[str, ...], said: str) -> None:
    answer = peg("sweep", "quick", *arguments, "--output", folder)
    assert answer.status == 2
    assert said in answer.err
    assert not folder.exists()


def test_an_unknown_metric_stops_the_sweep_and_can_be_corrected(peg: Any, folder: Path) -> None:
    said = peg("sweep", "quick", "x=1,2", "--output", folder, "--metric", "rewrad")
    assert said.status == 2
    assert "did you mean 'reward'" in said.err
    assert starts(folder) == ["trial-000"]
    assert peg("sweep", "quick", "x=1,2", "--output", folder, "--metric", "reward").status == 0


def test_a_folder_of_something_else_is_left_alone(peg: Any, folder: Path) -> None:
    folder.mkdir()
    (folder / "mine").touch()
    said = peg("sweep", "quick", "x=1,2", "--output", folder)
    assert said.status == 2
    assert "exists and holds no sweep" in said.err
