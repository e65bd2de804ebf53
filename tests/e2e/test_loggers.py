"""One training run that every logger records: all of them tell the same numbers."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

Numbers = dict[int, dict[str, float]]


def of_tensorboard(run: Path) -> Numbers:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    found: Numbers = {}
    for tag in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(tag):
            found.setdefault(event.step, {})[tag] = event.value
    return found


def of_mlflow(run: Path) -> Numbers:
    told = json.loads((run / "mlflow.json").read_text())
    client = MlflowClient(tracking_uri=told["uri"])
    found: Numbers = {}
    for name in client.get_run(told["run_id"]).data.metrics:
        for metric in client.get_metric_history(told["run_id"], name):
            found.setdefault(metric.step, {})[name] = metric.value
    assert client.get_run(told["run_id"]).data.params["optimizer.use"] == "adamw"
    return found


def of_wandb(run: Path, records: Any) -> Numbers:
    found: Numbers = {}
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    for data in records.blocks(file.read_bytes()):
        record = records.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            names = set(row) - {"step", "_step", "_runtime", "_timestamp"}
            found.setdefault(row["step"], {}).update({name: row[name] for name in names})
    return found


def of_jsonl(run: Path) -> Numbers:
    found: Numbers = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row.pop("step"), {}).update(row)
    return found


@pytest.fixture
def records() -> Any:
    """The reader of W&B's files beside the tests of its plugin."""
    path = Path(__file__).resolve().parents[2] / "plugins" / "wandb" / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("wandb_records", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_loggers_tell_the_same(
    tmp_path: Path, train: Callable[..., Path], records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = train(
        tmp_path / "runs" / "first",
        *("loggers=[jsonl, tensorboard, mlflow, {use: wandb, project: house}]", "data.validation=6", "steps=3"),
        config="lora",
    )
    wanted = of_jsonl(run)
    assert list(wanted) == [0, 1, 2, 3]
    assert set(wanted[2]) == {
        *("loss", "lr", "grad_norm", "tokens", "tokens_per_second"),
        *("trained_tokens", "trained_tokens_per_second", "mfu", "memory_gb"),
    }
    assert set(wanted[3]) - set(wanted[2]) == {"validation/loss"}
    for step in (1, 2, 3):
        assert 0 < wanted[step]["trained_tokens"] < wanted[step]["tokens"]
        rates = [wanted[step][f"{name}_per_second"] / wanted[step][name] for name in ("tokens", "trained_tokens")]
        assert rates[0] == pytest.approx(rates[1])
        assert 0 < wanted[step]["mfu"] and 0.05 < wanted[step]["memory_gb"]
    for found in (of_tensorboard(run), of_mlflow(run), of_wandb(run, records)):
        assert set(found) == set(wanted)
        for step, numbers in wanted.items():
            assert set(found[step]) == set(numbers)
            for name, value in numbers.items():
                assert math.isclose(found[step][name], value, rel_tol=1e-6), (step, name)
    git = json.loads((run / "env.json").read_text())["git"]
    assert git is None or len(git["commit"]) >= 40
