"""Kind `logger`: where the metrics of a run go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a logger is told when a run starts. `folder` is there. start_step is not 0 when the run is resumed."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    total_steps: int
    start_step: int = 0


class Logger(ABC):
    """Receives numbers on the first process of a run. An exception in a logger is warned about once and mutes that logger."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Begin a run."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers after optimizer step `step` (from 1). Names with a slash are grouped: "validation/loss"."""

    def message(self, text: str) -> None:
        """Show or record a line for people."""
        return

    @abstractmethod
    def finish(self, status: str) -> None:
        """End the run; status is "finished", "stopped" (by a signal) or "failed". Called exactly once after `start`."""
