"""The folder of a sweep: what it is, and what became of its runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pegboard.errors import ConfigError
from pegboard.interfaces.search import Trial

PLAN = "sweep.json"
RESULTS = "trials.jsonl"


@dataclass(slots=True)
class SweepFolder:
    """Owns `sweep.json` (what makes two sweeps the same) and `trials.jsonl` (a line for each run that ended, the last one counts).

    ended: runs that ended, by number. seconds: what they took.
    """

    path: Path
    ended: dict[int, Trial] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, plan: Mapping[str, Any]) -> SweepFolder:
        """Make the folder, or take up the sweep in it. Raises ConfigError when it holds anything else, or another sweep."""
        file = path / PLAN
        if not file.is_file():
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(f"{path} exists and holds no sweep", fix="name another folder with --output")
            path.mkdir(parents=True, exist_ok=True)
            _write_whole(file, json.dumps(plan, indent=1) + "\n")
            return cls(path)
        before = json.loads(file.read_text(encoding="utf-8"))
        different = sorted(key for key in {*before, *plan} if before.get(key) != plan.get(key))
        if different:
            raise ConfigError(
                f"{path} holds another sweep: {', '.join(different)} was {', '.join(repr(before.get(k)) for k in different)}",
                fix="repeat the command that began it, or name another folder with --output",
            )
        folder = cls(path)
        folder._read()
        return folder

    def finished(self, number: int) -> bool:
        """Whether a run came to its end; one that failed is run again."""
        return number in self.ended and self.ended[number].status == "finished"

    def record(self, trial: Trial, seconds: float) -> None:
        """Keep what became of a run."""
        self.ended[trial.number], self.seconds[trial.number] = trial, seconds
        line = {"number": trial.number, "status": trial.status, "value": trial.value, "seconds": round(seconds, 3)}
        with (self.path / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "point": dict(trial.point)}, ensure_ascii=False) + "\n")

    def run_folder(self, number: int) -> Path:
        """Return where a run writes."""
        return self.path / f"trial-{number:03d}"

    def log_file(self, number: int) -> Path:
        """Return where what a run prints goes."""
        return self.path / f"trial-{number:03d}.log"

    def ranked(self, *, maximise: bool) -> Sequence[Trial]:
        """Return the runs that ended, best first; those without a value last."""

        def key(trial: Trial) -> tuple[bool, float, int]:
            value = trial.value if trial.value is not None else 0.0
            return trial.value is None, -value if maximise else value, trial.number

        return sorted(self.ended.values(), key=key)

    def _read(self) -> None:
        file = self.path / RESULTS
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                told = json.loads(line)
                number = told["number"]
                self.ended[number] = Trial(number, told["point"], told["status"], told["value"])
                self.seconds[number] = told["seconds"]
            except (ValueError, KeyError, TypeError):
                continue  # a crash cut it short


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
