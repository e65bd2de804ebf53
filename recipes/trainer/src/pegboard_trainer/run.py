"""What surrounds the steps of a run: its folder, its loggers, validation, checkpoints, and being stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard_trainer.signals import StopRequest

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry
    from pegboard_trainer.examples import Examples, Key


@dataclass(slots=True)
class Run:
    """State has one owner: the loop asks here when to do what, and everything outside the step is done here.

    evaluate: returns the metrics of the held-out data, None without such data. write: writes a step folder.
    Saves and validations are remembered by step, so that asking twice does the work once.
    """

    info: RunInfo
    registry: Registry
    loggers: list[Logger]
    stop: StopRequest
    write: Callable[[int], Path]
    evaluate: Callable[[], Mapping[str, float]] | None = None
    log_every: int = 1
    validate_every: int | None = None
    save_every: int | None = None
    save_last: bool = True
    saved: int | None = None

    @property
    def first_step(self) -> int:
        """The step to take next, from 1."""
        return self.info.start_step + 1

    @property
    def total_steps(self) -> int:
        """The last step."""
        return self.info.total_steps

    def logs(self, step: int) -> bool:
        """Whether metrics are logged after `step`."""
        return step % self.log_every == 0

    def validates(self, step: int) -> bool:
        """Whether the held-out loss is measured after `step`."""
        return self.evaluate is not None and self.validate_every is not None and step % self.validate_every == 0

    def saves(self, step: int) -> bool:
        """Whether a step folder is written after `step`."""
        if step == self.total_steps and self.save_last:
            return True
        return self.save_every is not None and step % self.save_every == 0

    def stop_requested(self) -> bool:
        """Whether a signal asked for a clean stop."""
        return self.stop.number is not None

    def start(self) -> None:
        """Tell loggers and observers."""
        self._tell("start", self.info)
        self.registry.hooks.call("run_started", run=self.info)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand numbers to loggers and observers."""
        self._tell("log", step, metrics)
        self.registry.hooks.call("step_finished", step=step, metrics=metrics)

    def message(self, text: str) -> None:
        """Hand a line for people to the loggers."""
        self._tell("message", text)

    def validate(self, step: int) -> None:
        """Measure the held-out loss, if there is held-out data."""
        if self.evaluate is not None:
            self.log(step, dict(self.evaluate()))

    def save(self, step: int) -> None:
        """Write the step folder, unless it is there already."""
        if self.saved != step:
            folder = self.write(step)
            self.saved = step
            self.registry.hooks.call("checkpoint_saved", step=step, folder=folder)

    def finish(self, status: str) -> None:
        """Tell loggers and observers that the run ended."""
        self._tell("finish", status)
        self.registry.hooks.call("run_finished", status=status)

    def _tell(self, method: str, *arguments: object) -> None:
        for logger in list(self.loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                self.loggers.remove(logger)
                self.registry.warn_once(f"logger {type(logger).__name__} is muted: {type(error).__name__}: {error}")


def save_rows(folder: Path, step: int, keys: Sequence[Key], examples: Examples) -> Path:
    """Write the examples of a step that went wrong, with the places that they come from, and return the file."""
    path = folder / f"not-finite-step-{step:08d}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for key in keys:
            for row in examples.at(key):
                text = examples.tokenizer.decode(row.input_ids, skip_special=False)
                part = {"part": row.part} if row.part else {}
                line = {"from": examples.describe(key), **part, "text": text, "input_ids": row.input_ids}
                file.write(json.dumps(line) + "\n")
    return path
