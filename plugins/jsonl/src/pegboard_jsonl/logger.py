"""The logger: metrics.jsonl in the run's folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from pegboard.interfaces.logger import Logger, RunInfo

FILE = "metrics.jsonl"


class JsonlLogger(Logger):
    """Appends `{"step": …, name: value, …}` lines; numbers that JSON has no word for (infinite, not a number) become null.

    A resumed run first drops the lines after the step that it resumes from, so that no step stands in the file twice.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def start(self, run: RunInfo) -> None:
        """Open the file, keeping what earlier parts of the run wrote up to `run.start_step`."""
        run.folder.mkdir(parents=True, exist_ok=True)
        path = run.folder / FILE
        if path.exists():
            _keep_until(path, run.start_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line and hand it to the system at once, so that a crash loses nothing that was logged."""
        if self._file is None:
            raise RuntimeError("log() before start()")
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def finish(self, status: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _keep_until(path: Path, step: int) -> None:
    """Rewrite the file with the lines of steps up to `step`; a last line that a crash cut short is dropped too."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        # At step 0 nothing has been learned yet: a line of that step belongs to the run that starts now.
        file.writelines(line for number, line in _lines(path) if number <= step and step > 0)
    os.replace(temporary, path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield int(json.loads(line)["step"]), line
            except (ValueError, KeyError, TypeError):
                continue
