"""Loggers that are broken, each in one way."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, ClassVar

from pegboard_acme.logger import AcmeLogger
from pegboard_acme.options import Options

from pegboard_sdk.conformance import LoggerSuite


class Mutant(LoggerSuite):
    __test__ = False
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmeLogger]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> AcmeLogger:
        return self.broken(Options(**options))

    def read(self, folder: Path) -> list[tuple[int, dict[str, float]]]:
        found: list[tuple[int, dict[str, float]]] = []
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                if not found or found[-1][0] != step:
                    found.append((step, {}))
                found[-1][1][row["name"]] = float(row["value"])
        return found


class TestSkipsSteps(Mutant):
    caught_by = ("test_run",)

    class broken(AcmeLogger):
        def log(self, step, metrics):
            if step != 7:
                super().log(step, metrics)


class TestKnowsOneEnding(Mutant):
    caught_by = ("test_every_ending",)

    class broken(AcmeLogger):
        def finish(self, status):
            super().finish(status)
            assert status != "stopped"


class TestForgetsTheStartStep(Mutant):
    caught_by = ("test_resume",)

    class broken(AcmeLogger):
        def start(self, run):
            run.folder.mkdir(parents=True, exist_ok=True)
            path = run.folder / "metrics.csv"
            new = not path.exists()
            self._file = path.open("a", encoding="utf-8", newline="")
            if new:
                self._file.write("step,name,value\n")


class TestFlattensNames(Mutant):
    caught_by = ("test_nested_names",)

    class broken(AcmeLogger):
        def log(self, step, metrics):
            super().log(step, {name.rpartition("/")[2]: value for name, value in metrics.items()})


class TestRefusesNaN(Mutant):
    caught_by = ("test_numbers_that_are_not_finite",)

    class broken(AcmeLogger):
        def log(self, step, metrics):
            super().log(step, {name: int(value * 1000) / 1000 for name, value in metrics.items()})


class TestHidesInfinities(Mutant):
    caught_by = ("test_numbers_that_are_not_finite",)

    class broken(AcmeLogger):
        def log(self, step, metrics):
            super().log(step, {name: value if abs(value) < 1e30 else 0.0 for name, value in metrics.items()})


class TestSpeaksAscii(Mutant):
    caught_by = ("test_texts_of_all_kinds",)

    class broken(AcmeLogger):
        def message(self, text):
            text.encode("ascii")


class TestWritesAtTheEnd(Mutant):
    caught_by = ("test_metrics_stay_the_callers", "test_a_crash_loses_nothing")

    class broken(AcmeLogger):
        def start(self, run):
            super().start(run)
            self._kept = []

        def log(self, step, metrics):
            self._kept.append((step, metrics))

        def finish(self, status):
            for step, metrics in self._kept:
                super().log(step, metrics)
            super().finish(status)


class TestChangesTheMapping(Mutant):
    caught_by = ("test_metrics_stay_the_callers",)

    class broken(AcmeLogger):
        def log(self, step, metrics):
            metrics["step"] = step
            super().log(step, {name: value for name, value in metrics.items() if name != "step"})


class TestSharesItsFile(Mutant):
    caught_by = ("test_two_runs_side_by_side",)

    class broken(AcmeLogger):
        shared: ClassVar[dict[str, Any]] = {}
        _file = property(lambda self: self.shared.get("file"), lambda self, file: self.shared.update(file=file))


class TestLittersTheWorkingDirectory(Mutant):
    caught_by = ("test_writes_into_the_run_folder_alone",)

    class broken(AcmeLogger):
        def start(self, run):
            Path("acme-cache").mkdir(exist_ok=True)
            super().start(run)


class TestLittersTheFolderOfRuns(Mutant):
    caught_by = ("test_writes_into_the_run_folder_alone",)

    class broken(AcmeLogger):
        def start(self, run):
            super().start(run)
            (run.folder.parent / "latest").touch()


class TestLeavesFilesOpen(Mutant):
    caught_by = ("test_finish_gives_everything_back",)

    class broken(AcmeLogger):
        def start(self, run):
            super().start(run)
            os.open(run.folder, os.O_RDONLY)


class TestCannotBeRead(Mutant):
    caught_by = ("test_records_can_be_read",)
    broken = AcmeLogger
    read = LoggerSuite.read
