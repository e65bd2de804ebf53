from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pegboard.interfaces.logger import RunInfo
from pegboard_wandb.logger import FILE, WandbLogger
from pegboard_wandb.options import WandbOptions

CONFIG = {"recipe": "sft", "optimizer": {"use": "adamw", "lr": 1e-4}}


def run(folder: Path, start_step: int = 0) -> RunInfo:
    return RunInfo("sft", folder, CONFIG, total_steps=10, start_step=start_step)


def find(records: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def test_a_run_has_its_config_name_and_status(tmp_path: Path, records: Callable[[Path], list[Any]]) -> None:
    logger = WandbLogger(WandbOptions(project="house", group="first", tags=("a", "b"), notes="why"))
    logger.start(run(tmp_path))
    logger.log(1, {"loss": 2.0})
    logger.finish("stopped")
    found = records(tmp_path)
    (told,) = find(found, "run")[:1]
    assert (told.project, told.display_name, told.run_group, told.notes) == (
        "house",
        f"sft/{tmp_path.name}",
        "first",
        "why",
    )
    assert list(told.tags) == ["a", "b"]
    config = {item.key: json.loads(item.value_json) for item in told.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    summary = {item.key: item.value_json for record in find(found, "summary") for item in record.update}
    assert json.loads(summary["status"]) == "stopped"
    assert find(found, "exit")[0].exit_code == 0
    metrics = {(m.glob_name or m.name): m.step_metric for m in find(found, "metric")}
    assert metrics["*"] == "step"


def test_a_failed_run_is_shown_as_such(tmp_path: Path, records: Callable[[Path], list[Any]]) -> None:
    logger = WandbLogger(WandbOptions(mode="offline"))
    logger.start(run(tmp_path))
    logger.finish("failed")
    assert find(records(tmp_path), "exit")[0].exit_code == 1


def test_a_resumed_run_keeps_its_id_and_a_new_one_does_not(
    tmp_path: Path, records: Callable[[Path], list[Any]]
) -> None:
    ids = []
    for start_step in (0, 2, 0):
        if start_step:
            time.sleep(1.1)  # parts of a run are told apart by the second in which they began
        logger = WandbLogger(WandbOptions())
        logger.start(run(tmp_path, start_step))
        logger.log(start_step + 1, {"loss": 1.0})
        logger.finish("finished")
        ids.append(json.loads((tmp_path / FILE).read_text())["id"])
    assert ids[0] == ids[1] != ids[2]
    assert {told.run_id for told in find(records(tmp_path), "run")} == set(ids)


def test_a_folder_that_knows_of_no_run_begins_one(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    logger = WandbLogger(WandbOptions(mode="disabled"))
    logger.start(run(tmp_path, start_step=3))
    logger.log(4, {"loss": 1.0})
    logger.finish("finished")


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValidationError, match="mode"):
        WandbOptions(mode="sometimes")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="start"):
        WandbLogger(WandbOptions()).log(1, {})
