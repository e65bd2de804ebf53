"""A run that was interrupted and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Train = Callable[..., Path]
# Dropout draws random numbers, packing leaves batches open, and 30 rows are less than the examples of eight steps.
OPTIONS = [
    "adapter.dropout=0.2",
    "batch.accumulate=2",
    "batch.size=3",
    "steps=8",
    "checkpoint.every=1",
    "checkpoint.keep=null",
]


def state_of(run: Path, step: int) -> dict[str, bytes]:
    """Every byte that a step folder holds."""
    folder = run / f"step-{step:08d}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What differs from one process to the next.
MEASURED = {"tokens_per_second", "trained_tokens_per_second", "mfu", "memory_gb"}


def logged(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Path:
    """A run that was never interrupted."""
    return train(tmp_path_factory.mktemp("whole") / "run", *OPTIONS, config="lora")


def interrupted(whole: Path, folder: Path, step: int) -> Path:
    """A copy of the run as it was after a step, with what a killed process leaves beside it."""
    shutil.copytree(whole, folder, symlinks=True)
    for path in folder.glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (folder / ".unfinished-step-00000099-1").mkdir()
    return folder


@pytest.mark.parametrize("step", [1, 4, 7])
def test_an_interrupted_run_continues_bit_for_bit(whole: Path, tmp_path: Path, train: Train, step: int) -> None:
    run = interrupted(whole, tmp_path / "run", step)
    train(run, *OPTIONS, "resume=auto", config="lora")
    for later in range(step + 1, 9):
        assert state_of(run, later) == state_of(whole, later)
    assert logged(run) == logged(whole)
    assert not list(run.glob(".unfinished*"))


def test_the_runs_differ_without_their_random_state(whole: Path, tmp_path: Path, train: Train) -> None:
    """The comparison above can fail: another seed gives other weights."""
    other = train(tmp_path / "run", *OPTIONS, "seed=1", config="lora")
    assert (
        state_of(other, 8)["model/adapter_model.safetensors"] != state_of(whole, 8)["model/adapter_model.safetensors"]
    )


def test_all_weights_and_a_schedule_continue_too(tmp_path: Path, train: Train) -> None:
    more = [
        "steps=6",
        "checkpoint.every=3",
        "checkpoint.keep=null",
        "model.dtype=bfloat16",
        "optimizer.rounding=stochastic",
    ]
    whole = train(tmp_path / "whole", *more)
    run = interrupted(whole, tmp_path / "run", 3)
    train(run, *more, "resume=auto")
    assert state_of(run, 6) == state_of(whole, 6)


def test_a_run_continues_in_another_folder(whole: Path, tmp_path: Path, train: Train) -> None:
    run = train(tmp_path / "run", *OPTIONS, f"resume={whole / 'step-00000006'}", config="lora")
    assert state_of(run, 8) == state_of(whole, 8)


def test_more_steps_may_be_asked_for(whole: Path, tmp_path: Path, train: Train) -> None:
    run = interrupted(whole, tmp_path / "run", 8)
    train(run, *OPTIONS, "resume=auto", "steps=9", config="lora")
    assert (run / "final").resolve() == (run / "step-00000009" / "model").resolve()


def test_auto_begins_a_run_that_has_no_step_yet(tmp_path: Path, train: Train) -> None:
    run = train(tmp_path / "run", "steps=2", "resume=auto", config="lora")
    assert (run / "final" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.lr=0.5", "optimizer.lr"),
        ("batch.length=32", "batch.length"),
        ("data.validation=5", "data.validation, rows"),
        ("adapter.alpha=3", "adapter.alpha"),
        ("schedule.use=linear", "schedule.use"),
        ("adapter.rank=4", "holds other trained weights than this run"),
    ],
)
def test_a_changed_run_is_not_resumed(
    whole: Path, arguments: Callable[..., list[str]], peg: Any, change: str, said: str
) -> None:
    out = peg(*arguments(whole, *OPTIONS, change, "resume=auto", "steps=9", config="lora"))
    assert out.status == 2
    assert said in out.err
    assert not (whole / "step-00000009").exists()


def test_a_step_that_is_not_there_is_named(tmp_path: Path, arguments: Callable[..., list[str]], peg: Any) -> None:
    out = peg(*arguments(tmp_path / "run", f"resume={tmp_path / 'step-00000003'}"))
    assert (out.status, "is no complete step folder" in out.err) == (2, True)
    out = peg(*arguments(tmp_path / "run", f"resume={tmp_path}"))
    assert (out.status, "there is no step to resume from" in out.err) == (2, True)
