"""The suite of kind `logger`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import pytest

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite

Record = tuple[int, Mapping[str, float | None]]
_DESCRIPTORS = Path("/proc/self/fd")


@standard
class LoggerSuite(PluginSuite):
    """Runs are logged as the loop does it, and read back through `read` where that is possible.

    readable: whether `read` is implemented, so that what was recorded can be compared.
    durable: whether a number can be read back before the run is finished, as after a crash.
    local: whether the logger writes nothing but what lies in the run's folder.
    """

    kind = "logger"
    readable: ClassVar[bool] = True
    durable: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def read(self, folder: Path) -> Sequence[Record]:
        """Return what was recorded under a run's folder, in order: (step, {name: value}), NaN or None for no number."""
        raise NotImplementedError(f"{type(self).__name__} needs read(), or readable = False")

    def begin(self, folder: Path, start_step: int = 0, name: str = "tested") -> Logger:
        """Return a new logger whose run of ten steps has started; its folder is there, as the loop makes it."""
        folder.mkdir(parents=True, exist_ok=True)
        logger: Logger = self.create()
        config = MappingProxyType({"recipe": "none", "optimizer": {"lr": 1e-4}, "note": "größer → 大"})
        logger.start(RunInfo(name, folder, config, total_steps=10, start_step=start_step))
        return logger

    def check(self, folder: Path, wanted: Sequence[Record]) -> None:
        """Compare what was recorded; a number that is not finite may have become None or NaN."""
        if not self.readable:
            return
        found = self.read(folder)
        assert [step for step, _ in found] == [step for step, _ in wanted]
        for (step, got), (_, right) in zip(found, wanted, strict=True):
            assert set(got) == set(right), f"names of step {step}"
            for name, value in right.items():
                mine = got[name]
                if value is not None and math.isfinite(value):
                    assert mine == pytest.approx(value, rel=1e-6), f"{name} of step {step}"
                else:
                    assert mine is None or not math.isfinite(mine), f"{name} of step {step} is {mine}, not {value}"

    def test_records_can_be_read(self) -> None:
        """Whether this suite compares what was recorded."""
        self.needs("readable", "only that the logger takes what it is given is tested")
        assert type(self).read is not LoggerSuite.read

    def test_run(self, tmp_path: Path) -> None:
        """Start, ten steps, finish."""
        logger = self.begin(tmp_path / "run")
        wanted = [(step, {"loss": 5.0 / step, "lr": 1e-4}) for step in range(1, 11)]
        for step, metrics in wanted:
            logger.log(step, metrics)
        logger.finish("finished")
        self.check(tmp_path / "run", wanted)

    def test_every_ending(self, tmp_path: Path) -> None:
        """A run may be finished, stopped or failed, also before its first step."""
        for status in ("finished", "stopped", "failed"):
            self.begin(tmp_path / status).finish(status)
            logger = self.begin(tmp_path / f"{status}-later")
            logger.log(1, {"loss": 2.5})
            logger.finish(status)
            self.check(tmp_path / f"{status}-later", [(1, {"loss": 2.5})])

    def test_resume(self, tmp_path: Path) -> None:
        """A run that goes on from step 2 has each step once, with what was logged last."""
        logger = self.begin(tmp_path / "run")
        for step in (1, 2, 3, 4):
            logger.log(step, {"loss": float(step)})
        logger.finish("failed")
        logger = self.begin(tmp_path / "run", start_step=2)
        for step in (3, 4, 5):
            logger.log(step, {"loss": 10.0 * step})
        logger.finish("finished")
        self.check(
            tmp_path / "run", [(1, {"loss": 1.0}), (2, {"loss": 2.0}), *((s, {"loss": 10.0 * s}) for s in (3, 4, 5))]
        )

    def test_nested_names(self, tmp_path: Path) -> None:
        """Names with slashes are metrics like any other; steps need not have the same ones."""
        logger = self.begin(tmp_path / "run")
        wanted = [(1, {"loss": 2.0, "validation/loss": 3.0, "validation/by/task": 0.5}), (2, {"reward/mean": -1.0})]
        for step, metrics in wanted:
            logger.log(step, metrics)
        logger.finish("finished")
        self.check(tmp_path / "run", wanted)

    def test_numbers_that_are_not_finite(self, tmp_path: Path) -> None:
        """NaN and infinities are recorded as such or as nothing, and break no later line."""
        logger = self.begin(tmp_path / "run")
        wanted = [
            (1, {"loss": math.nan, "norm": math.inf}),
            (2, {"loss": -math.inf, "norm": 0.0}),
            (3, {"loss": 1e-300}),
        ]
        for step, metrics in wanted:
            logger.log(step, metrics)
        logger.finish("finished")
        self.check(tmp_path / "run", wanted)

    def test_texts_of_all_kinds(self, tmp_path: Path) -> None:
        """Names, folders and messages hold any characters, markup and line ends too."""
        folder = tmp_path / "Läufe" / "実験"
        logger = self.begin(folder, name="Übung [bold] 🎉")
        for text in (
            "Δloss → ½, 大丈夫 🎉",
            "[red]no markup[/red] [/nope] {braces} %s %d",
            "two\nlines",
            "",
            '"quoted"',
        ):
            logger.message(text)
        logger.log(1, {"größe": 1.5})
        logger.finish("stopped")
        self.check(folder, [(1, {"größe": 1.5})])

    def test_metrics_stay_the_callers(self, tmp_path: Path) -> None:
        """A mapping that is given to `log` may be read-only, and may be changed afterwards."""
        logger = self.begin(tmp_path / "run")
        metrics = {"loss": 1.0}
        logger.log(1, MappingProxyType(metrics))
        metrics["loss"] = 99.0
        logger.log(2, metrics)
        logger.finish("finished")
        self.check(tmp_path / "run", [(1, {"loss": 1.0}), (2, {"loss": 99.0})])

    def test_two_runs_side_by_side(self, tmp_path: Path) -> None:
        """Loggers share no state."""
        one, two = self.begin(tmp_path / "one"), self.begin(tmp_path / "two")
        one.log(1, {"loss": 1.0})
        two.log(1, {"loss": 2.0})
        one.finish("finished")
        two.log(2, {"loss": 2.5})
        two.finish("finished")
        self.check(tmp_path / "one", [(1, {"loss": 1.0})])
        self.check(tmp_path / "two", [(1, {"loss": 2.0}), (2, {"loss": 2.5})])

    def test_a_crash_loses_nothing(self, tmp_path: Path) -> None:
        """What was logged can be read while the run is still going."""
        self.needs("durable", "numbers are kept back until the run ends")
        logger = self.begin(tmp_path / "run")
        logger.log(1, {"loss": 1.0})
        self.check(tmp_path / "run", [(1, {"loss": 1.0})])
        logger.finish("failed")

    def test_writes_into_the_run_folder_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither the working directory nor the folder of all runs gets anything."""
        self.needs("local", "the logger writes elsewhere too")
        here, runs = tmp_path / "here", tmp_path / "runs"
        here.mkdir()
        monkeypatch.chdir(here)
        logger = self.begin(runs / "run")
        logger.log(1, {"loss": 1.0})
        logger.finish("finished")
        assert list(here.iterdir()) == []
        assert [path.name for path in runs.iterdir()] == ["run"]

    def test_finish_gives_everything_back(self, tmp_path: Path) -> None:
        """No file stays open after `finish`."""
        if not _DESCRIPTORS.is_dir():
            self.skip("open files cannot be counted on this system")
        self.begin(tmp_path / "first").finish("finished")  # what is opened once for the process does not count
        before = len(os.listdir(_DESCRIPTORS))
        loggers = [self.begin(tmp_path / str(i)) for i in range(3)]
        for logger in loggers:
            logger.log(1, {"loss": 1.0})
            logger.finish("finished")
        assert len(os.listdir(_DESCRIPTORS)) == before
