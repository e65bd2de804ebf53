from __future__ import annotations

import json
from pathlib import Path

import pytest

from pegboard.interfaces.logger import RunInfo
from pegboard_jsonl.logger import JsonlLogger


def run(folder: Path, start_step: int = 0) -> RunInfo:
    return RunInfo("test", folder, {}, total_steps=10, start_step=start_step)


def read(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.start(run(tmp_path))
    logger.log(1, {"loss": 2.5, "validation/loss": 3.0})
    assert read(tmp_path) == [{"step": 1, "loss": 2.5, "validation/loss": 3.0}]
    logger.finish("finished")


def test_a_resumed_run_drops_what_came_after_its_step(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.start(run(tmp_path))
    for step in (1, 2, 3):
        logger.log(step, {"loss": float(step)})
    logger.finish("failed")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    logger.start(run(tmp_path, start_step=2))
    logger.log(3, {"loss": 30.0})
    logger.finish("finished")
    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_numbers_outside_json_become_null(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.start(run(tmp_path))
    logger.log(1, {"loss": float("nan"), "norm": float("inf")})
    logger.finish("failed")
    assert read(tmp_path) == [{"step": 1, "loss": None, "norm": None}]


def test_logging_before_the_start_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="start"):
        JsonlLogger().log(1, {})
