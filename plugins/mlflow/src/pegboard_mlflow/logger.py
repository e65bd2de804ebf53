"""The logger: one MLflow run, which a resumed run continues."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard_mlflow.options import MlflowOptions

FILE = "mlflow.json"
"""Holds the store and the id of the run, so that a resumed run goes on under it."""

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PARAMETERS = 100
"""Most parameters that one call takes."""
LONGEST = 6000
"""Most characters of a parameter's value."""
FORBIDDEN = re.compile(r"[^\w\-. :/]")
"""Characters that no name in MLflow may have."""


class MlflowLogger(Logger):
    """Records through a client of its own: MLflow's active run belongs to the user's program."""

    def __init__(self, options: MlflowOptions) -> None:
        self._options = options
        self._client: MlflowClient | None = None
        self._run_id = ""

    def start(self, run: RunInfo) -> None:
        """Begin a run, or go on with the one that the folder knows of."""
        uri = self._options.uri or os.environ.get("MLFLOW_TRACKING_URI") or _beside(run.folder)
        self._client = MlflowClient(tracking_uri=uri)
        known = _known(run.folder, uri) if run.start_step else None
        if known is not None and self._continues(self._client, known):
            self._run_id = known
            return
        experiment = _experiment(self._client, self._options.experiment, run.folder, uri)
        name = self._options.name or f"{run.name}/{run.folder.name}"
        self._run_id = self._client.create_run(experiment, run_name=name).info.run_id
        tags = {"pegboard.folder": str(run.folder.absolute()), **self._options.tags}
        self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        parameters = [Param(_name(key), value[:LONGEST]) for key, value in flat(run.config)]
        for at in range(0, len(parameters), PARAMETERS):
            self._client.log_batch(self._run_id, params=parameters[at : at + PARAMETERS])
        (run.folder / FILE).write_text(json.dumps({"uri": uri, "run_id": self._run_id}) + "\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the numbers of a step in one call, and wait until they are stored."""
        if self._client is None:
            raise RuntimeError("log() before start()")
        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(_name(k), float(v), now, step) for k, v in metrics.items()])

    def finish(self, status: str) -> None:
        """End the run."""
        if self._client is not None:
            self._client.set_terminated(self._run_id, STATUS[status])
            self._client = None

    def _continues(self, client: MlflowClient, run_id: str) -> bool:
        """Mark an earlier run as running again; return whether the store knows it."""
        try:
            client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return False
        return True


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ("optimizer.lr", "0.0001") for every value of a nested mapping; lists are JSON."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
        else:
            plain = list(value) if isinstance(value, Sequence) else value
            yield f"{prefix}{key}", json.dumps(plain, ensure_ascii=False, default=str)


def _name(text: str) -> str:
    return FORBIDDEN.sub("_", text)


def _beside(folder: Path) -> str:
    return f"sqlite:///{folder.absolute().parent / 'mlflow.db'}"


def _experiment(client: MlflowClient, name: str, folder: Path, uri: str) -> str:
    """Return the id of an experiment, made if need be. That of a local store keeps its artifacts beside the runs, not in the
    working directory.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    artifacts = (folder.absolute().parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=artifacts))


def _known(folder: Path, uri: str) -> str | None:
    """Return the id of the run that an earlier part recorded in this store, None where it recorded none."""
    try:
        told = json.loads((folder / FILE).read_text())
        return str(told["run_id"]) if told["uri"] == uri else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
