from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow.tracking import MlflowClient

from pegboard_mlflow.plugin import SPEC
from pegboard_sdk.conformance import LoggerSuite

# MLflow asks SQLAlchemy 2.1 for what 2.0 still recommended.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


class TestMlflow(LoggerSuite):
    """What MLflow's client finds in a SQLite store."""

    spec = SPEC
    # Runs share a store beside their folders.
    local: ClassVar[bool] = False

    def read(self, folder: Path) -> list[tuple[int, dict[str, float | None]]]:
        told = json.loads((folder / "mlflow.json").read_text())
        client = MlflowClient(tracking_uri=told["uri"])
        steps: dict[int, dict[str, float | None]] = {}
        for name in client.get_run(told["run_id"]).data.metrics:
            for metric in sorted(client.get_metric_history(told["run_id"], name), key=lambda m: m.timestamp):
                # An infinity is stored as the largest number.
                infinite = abs(metric.value) == sys.float_info.max
                steps.setdefault(metric.step, {})[name] = None if infinite else metric.value
        return sorted(steps.items())
