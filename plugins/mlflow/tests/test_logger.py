from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pegboard.interfaces.logger import RunInfo
from pegboard_mlflow.logger import FILE, MlflowLogger, flat
from pegboard_mlflow.options import MlflowOptions

# MLflow asks SQLAlchemy 2.1 for what 2.0 still recommended.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

CONFIG = {"output": "runs/x", "optimizer": {"use": "adamw", "betas": [0.9, 0.99]}, "clip": None, "[odd]": "x" * 9000}


def run(folder: Path, start_step: int = 0) -> RunInfo:
    return RunInfo("sft", folder, CONFIG, total_steps=10, start_step=start_step)


def record(folder: Path, status: str = "finished", start_step: int = 0, **options: object) -> str:
    logger = MlflowLogger(MlflowOptions(**options))  # type: ignore[arg-type]
    logger.start(run(folder, start_step))
    logger.log(start_step + 1, {"loss": 2.0, "a[0]": 1.0})
    logger.finish(status)
    return str(json.loads((folder / FILE).read_text())["run_id"])


def test_a_run_has_its_parameters_name_tags_and_experiment(tmp_path: Path, store: str) -> None:
    run_id = record(tmp_path, experiment="house", tags={"team": "us"})
    client = MlflowClient(tracking_uri=store)
    found = client.get_run(run_id)
    assert found.info.run_name == f"sft/{tmp_path.name}"
    assert found.info.experiment_id == client.get_experiment_by_name("house").experiment_id
    assert found.data.params == {
        "output": "runs/x",
        "optimizer.use": "adamw",
        "optimizer.betas": "[0.9, 0.99]",
        "clip": "null",
        "_odd_": "x" * 6000,
    }
    assert found.data.tags["team"] == "us"
    assert found.data.tags["pegboard.folder"] == str(tmp_path)
    assert found.data.metrics == {"loss": 2.0, "a_0_": 1.0}


@pytest.mark.parametrize(("status", "told"), [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")])
def test_how_it_ended(tmp_path: Path, store: str, status: str, told: str) -> None:
    assert MlflowClient(tracking_uri=store).get_run(record(tmp_path, status)).info.status == told


def test_a_resumed_run_goes_on_as_the_same_and_a_new_one_does_not(tmp_path: Path, store: str) -> None:
    first = record(tmp_path)
    assert record(tmp_path, start_step=1) == first
    history = MlflowClient(tracking_uri=store).get_metric_history(first, "loss")
    assert [metric.step for metric in history] == [1, 2]
    second = record(tmp_path)
    assert second != first
    # What the store no longer knows, and what is no record, begin a run as well.
    (tmp_path / FILE).write_text(json.dumps({"uri": store, "run_id": "0" * 32}))
    assert record(tmp_path, start_step=1) not in (first, second)
    (tmp_path / FILE).write_text("{")
    assert record(tmp_path, start_step=1) not in (first, second)


def test_many_parameters(tmp_path: Path, store: str) -> None:
    logger = MlflowLogger(MlflowOptions())
    config = {"layers": {str(number): {"rank": number} for number in range(250)}}
    logger.start(RunInfo("sft", tmp_path, config, total_steps=1))
    logger.finish("finished")
    run_id = json.loads((tmp_path / FILE).read_text())["run_id"]
    assert MlflowClient(tracking_uri=store).get_run(run_id).data.params == dict(flat(config))


def test_without_a_uri_runs_share_a_store_beside_their_folders(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, folder = tmp_path / "here", tmp_path / "runs" / "first"
    here.mkdir()
    folder.mkdir(parents=True)
    record(folder)
    # Tables that are there already save seconds.
    shutil.copy(store.removeprefix("sqlite:///"), folder.parent / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(here)
    run_id = record(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["first", "mlflow.db"]
    assert list(here.iterdir()) == []
    found = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}").get_run(run_id)
    assert found.data.metrics["loss"] == 2.0


def test_logging_before_the_start_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="start"):
        MlflowLogger(MlflowOptions()).log(1, {})
