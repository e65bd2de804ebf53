from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pegboard.interfaces.logger import Logger
from pegboard_sdk.conformance import LoggerSuite
from pegboard_wandb.plugin import SPEC

OWN = ("_runtime", "_step", "_timestamp", "step")


class TestWandb(LoggerSuite):
    """What W&B would send of an offline run."""

    spec = SPEC
    # W&B's own process writes in the background.
    durable: ClassVar[bool] = False
    history: Callable[[Path], list[dict[str, Any]]]

    @pytest.fixture(autouse=True)
    def _reader(self, history: Callable[[Path], list[dict[str, Any]]]) -> None:
        self.history = history

    def begin(self, folder: Path, start_step: int = 0, name: str = "tested") -> Logger:
        if start_step:
            time.sleep(1.1)  # parts of a run are told apart by the second in which they began
        return super().begin(folder, start_step, name)

    def read(self, folder: Path) -> list[tuple[int, dict[str, float | None]]]:
        steps: dict[int, dict[str, float | None]] = {}
        for row in self.history(folder):
            steps[row["step"]] = {
                name: float(value) if isinstance(value, str) else value
                for name, value in row.items()
                if name not in OWN
            }
        return sorted(steps.items())
