"""Signals, kills and full disks: what is on disk afterwards can be used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pegboard.weights import read_safetensors

Start = Callable[[Sequence[str]], "subprocess.Popen[str]"]
Arguments = Callable[..., list[str]]
LONG = ["steps=100000", "batch.size=1"]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a step was logged."""
    path = run / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def step_numbers(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted(run.glob("step-*"))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_that_continues(
    tmp_path: Path, start: Start, arguments: Arguments, train: Callable[..., Path], number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start(arguments(run, *LONG, config="lora"))
    wait_for_step(run, 3, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    (step,) = step_numbers(run)
    assert (run / "final" / "adapter_model.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == step
    train(run, *LONG, "resume=auto", f"steps={step + 2}", "schedule.warmup=0.05", config="lora")
    assert step_numbers(run)[-1] == step + 2


def test_a_kill_during_a_save_leaves_the_step_before(
    tmp_path: Path, start: Start, arguments: Arguments, train: Callable[..., Path]
) -> None:
    """Killed while the second step folder is being written: the hook tells that it is there, but not yet under its name."""
    run = tmp_path / "run"
    code = (
        "import os, signal, sys\n"
        "import pegboard_trainer.disk as disk\n"
        "rename = os.rename\n"
        "def killed(source, target):\n"
        "    if str(target).endswith('step-00000004'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(source, target)\n"
        "disk.os.rename = killed\n"
        "from pegboard.cli import run_cli\n"
        "sys.exit(run_cli(sys.argv[1:]))\n"
    )
    more = ["steps=6", "checkpoint.every=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments(run, *more)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert step_numbers(run) == [2]
    assert [path.name[:26] for path in run.glob(".*")] == [".unfinished-step-00000004-"]
    assert (run / "final").resolve() == (run / "step-00000002" / "model").resolve()
    for path in sorted((run / "step-00000002").rglob("*.safetensors")):
        assert all(lazy.load().shape == lazy.shape for lazy in read_safetensors(path).values())
    train(run, *more, "resume=auto")
    assert step_numbers(run) == [4, 6]
    assert not list(run.glob(".*"))


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path, arguments: Arguments) -> None:
    """The system refuses to let a file grow beyond 20 kB, which the weights would."""
    run = tmp_path / "run"

    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from pegboard.cli import run_cli\n"
        "sys.exit(run_cli(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-B", "-c", code, *arguments(run, "steps=2")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error: no space left to write" in done.stderr
    assert "fix: free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "env.json", "metrics.jsonl"]


def test_a_gradient_that_is_not_finite_stops_and_saves_its_rows(
    tmp_path: Path, arguments: Arguments, peg: Any, data: Path, sums: list[dict[str, str]]
) -> None:
    run = tmp_path / "run"
    out = peg(*arguments(run, "optimizer.lr=1e30", "clip=null", "steps=50", "log_every=5", "data.shuffle=false"))
    assert out.status == 2
    assert "is not finite; its rows are in" in out.err
    assert "fix: lower optimizer.lr, or look at the rows of that step" in out.err
    assert not list(run.glob("step-*"))
    (file,) = run.glob("not-finite-step-*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows
    for row in rows:
        path, _, line = row["from"].rpartition(", line ")
        assert path == str(data)
        assert sums[int(line) - 1]["instruction"] in row["text"]
