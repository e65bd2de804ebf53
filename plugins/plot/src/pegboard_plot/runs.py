"""What runs logged, as the `jsonl` logger wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from pegboard.errors import DataError, nearest

FILE = "metrics.jsonl"

Series = list[tuple[float, float]]
"""(x, value) in the order of steps."""


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """One run. rows: one for each line: its step and its numbers; what JSON had no number for is left out."""

    name: str
    path: Path
    rows: Sequence[tuple[int, dict[str, float]]]

    @property
    def names(self) -> list[str]:
        """The metrics that were logged, in the order in which they first came."""
        return list(dict.fromkeys(name for _, row in self.rows for name in row))

    def series(self, metric: str, x: str = "step") -> Series:
        """Return a metric over steps, or over the tokens that were trained on so far; empty where it was never logged."""
        if x == "step":
            places: Iterator[float] = (step for step, _ in self.rows)
        else:
            places = accumulate(row.get("tokens", 0.0) for _, row in self.rows)
        return [(at, row[metric]) for at, (_, row) in zip(places, self.rows, strict=True) if metric in row]

    def last(self, metric: str) -> float | None:
        """Return the value that was logged last."""
        series = self.series(metric)
        return series[-1][1] if series else None


def read_runs(paths: Sequence[Path]) -> list[RunMetrics]:
    """Return the runs that paths name: run folders, folders of run folders, or files. Raises DataError for a path without a run.

    Names are the folders', as much of them as tells the runs apart.
    """
    files = [file for path in paths for file in _files(path)]
    return [RunMetrics(name, file, read_metrics(file)) for name, file in zip(_names(files), files, strict=True)]


def read_metrics(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Return (step, numbers) of each line of a file. A last line that is not whole yet is passed by.

    Raises DataError for any other line that is no object with a step.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            step = int(told.pop("step"))
        except (ValueError, TypeError, AttributeError, KeyError):
            if number == len(lines):
                break  # the run is writing it, or was killed while it did
            raise DataError(
                f"{path}, line {number} is no line of metrics: {line[:60]!r}", fix="name a file that `jsonl` wrote"
            ) from None
        rows.append((step, {k: float(v) for k, v in told.items() if isinstance(v, (int, float))}))
    return rows


def check_metric(runs: Sequence[RunMetrics], metric: str) -> None:
    """Raise DataError when no run logged a metric, neither in training nor in validation."""
    known = list(dict.fromkeys(name for run in runs for name in run.names))
    if metric not in known and f"validation/{metric}" not in known:
        raise DataError(
            f"no run has the metric {metric!r}{nearest(metric, known)}", fix=f"choose of: {', '.join(known) or 'none'}"
        )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / FILE).is_file():
        return [path / FILE]
    found = sorted(path.glob(f"*/{FILE}")) if path.is_dir() else []
    if not found:
        what = "holds no run" if path.is_dir() else "does not exist"
        raise DataError(
            f"{path} {what}", fix=f"name a run's folder with a {FILE} (the run needs the logger jsonl), or that file"
        )
    return found


def _names(files: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart."""
    ways = [_way(file) for file in files]
    for length in range(1, max(map(len, ways), default=1) + 1):
        names = ["/".join(parts[-length:]) for parts in ways]
        if len(set(names)) == len(set(files)):
            break
    return names if files else []


def _way(file: Path) -> tuple[str, ...]:
    whole = file.absolute()
    return (whole.parent if whole.name == FILE else whole).parts
