"""A sweep: proposals, runs, results."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pegboard.errors import ConfigError, DataError, nearest
from pegboard.interfaces.search import Axis, Point, Search, Trial
from pegboard_plot.runs import RunMetrics, read_runs
from pegboard_sweep.jobs import Job, Jobs, stopping
from pegboard_sweep.trials import SweepFolder

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

HELD_OUT, TRAINED = "validation/loss", "loss"


@dataclass(slots=True)
class Sweep:
    """What is run. fixed: overrides that every run has. metric: None for the held-out loss, or that of training without one.

    devices: which jobs take in turn; empty for the config's own. told: takes lines for people.
    """

    registry: Registry
    recipe: str
    config: str | None
    axes: Sequence[Axis]
    fixed: Sequence[str]
    search: Search
    total: int
    seed: int
    metric: str | None
    maximise: bool
    devices: Sequence[int]
    told: Callable[[str], None]

    def check(self, folder: SweepFolder) -> None:
        """Validate the settings of all runs that are known before the first one runs. Raises ConfigError for the first wrong one."""
        from pegboard.config import load_config

        known = range(1 if self.search.adaptive else self.total)
        for number in known:
            point = self.propose(number, [])
            try:
                found = load_config(self.registry, self.recipe, self.config, self.overrides(folder, number, point))
            except ConfigError as error:
                raise ConfigError(f"{setting(point)}: {error.message}", fix=error.fix) from None
            loggers = found.get("loggers") or []
            if not any(isinstance(choice, dict) and choice.get("use") == "jsonl" for choice in loggers):
                raise ConfigError(
                    "the runs would not record their metrics", fix="add the logger jsonl: loggers=[console, jsonl]"
                )

    def propose(self, number: int, history: Sequence[Trial]) -> Point:
        """Return the settings of a run."""
        return self.search.propose(self.axes, number, history, seed=self.seed, maximise=self.maximise)

    def overrides(self, folder: SweepFolder, number: int, point: Point, slot: int = 0) -> list[str]:
        """Return the overrides of a run. `resume=auto` goes on with one that was interrupted, and begins one that was not there."""
        device = [f"model.device={self.devices[slot % len(self.devices)]}"] if self.devices else []
        varied = [f"{key}={value}" for key, value in point.items()]
        return [*self.fixed, *device, *varied, f"output={folder.run_folder(number)}", "resume=auto"]

    def run(self, folder: SweepFolder, jobs: Jobs) -> None:
        """Run what has not finished yet, in order, and record how it went."""
        for trial in list(folder.ended.values()):
            if trial.status == "finished":  # by the metric that is asked for now
                folder.ended[trial.number] = replace(trial, value=self.value(folder, trial.number)[1])
        left = [number for number in range(self.total) if not folder.finished(number)]
        points: dict[int, Point] = {}
        with stopping(jobs, self.told):
            while left or jobs.running:
                slot = jobs.free
                if left and slot is not None:
                    number = left.pop(0)
                    points[number] = self._start(folder, jobs, number, slot, points)
                    continue
                job, status = jobs.wait()
                self._ended(folder, job, status, points.pop(job.number))

    def _start(self, folder: SweepFolder, jobs: Jobs, number: int, slot: int, running: dict[int, Point]) -> Point:
        before = folder.ended.get(number)
        history = [*folder.ended.values(), *(Trial(other, point) for other, point in running.items())]
        # A run that is tried again keeps its settings: what a search proposes now may be something else.
        point = _kept(folder, number) or (before.point if before else self.propose(number, history))
        _keep(folder, number, point)
        self.told(f"{_label(number)} of {self.total}: {setting(point)}")
        config = [] if self.config is None else ["--config", self.config]
        arguments = ["run", self.recipe, *config, *self.overrides(folder, number, point, slot)]
        jobs.start(number, arguments, folder.log_file(number), slot)
        return point

    def _ended(self, folder: SweepFolder, job: Job, status: int, point: Point) -> None:
        seconds = time.perf_counter() - job.began
        trial = Trial(job.number, point, "failed")
        wrong = f"failed with status {status}, see {folder.log_file(job.number)}"
        if status == 0:
            metric, value = self.value(folder, job.number)
            if math.isfinite(value):
                trial = replace(trial, status="finished", value=value)
                wrong = ""
            else:
                wrong = f"{metric} is {value}"
        folder.record(trial, seconds)
        self.told(f"{_label(job.number)}: {wrong or f'{metric} {value:.5g}, {seconds:.0f} s'}")

    def value(self, folder: SweepFolder, number: int) -> tuple[str, float]:
        """Return the metric that runs are compared by and what a run that ended came to: the value that it logged last.

        Raises DataError when it never logged one: what one run does not record, no other one does.
        """
        run = read_runs([folder.run_folder(number)])[0]
        metric = self.metric or default_metric(run)
        value = run.last(metric)
        if value is None:
            raise DataError(
                f"{run.path} has no metric {metric!r}{nearest(metric, run.names)}",
                fix=f"repeat the command with --metric and one of: {', '.join(run.names) or 'none'}",
            )
        return metric, value


def default_metric(run: RunMetrics) -> str:
    """Return the held-out loss where it was measured, else the loss."""
    return HELD_OUT if run.last(HELD_OUT) is not None else TRAINED


def setting(point: Point) -> str:
    """Return settings as people write them."""
    return " ".join(f"{key}={value}" for key, value in point.items()) or "as it is"


def _label(number: int) -> str:
    return f"trial {number}"


def _keep(folder: SweepFolder, number: int, point: Point) -> None:
    file = folder.run_folder(number).with_suffix(".json")
    file.write_text(json.dumps(dict(point), ensure_ascii=False) + "\n", encoding="utf-8")


def _kept(folder: SweepFolder, number: int) -> Point | None:
    """Return the settings that a run was started with, None where it was not, or its file was cut short."""
    try:
        point: dict[str, str] = json.loads(folder.run_folder(number).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return point
