"""What surrounds the steps of a run: its folder, its loggers, validation, checkpoints, and being stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard_trainer.patience import Patience
from pegboard_trainer.saver import Saver
from pegboard_trainer.signals import StopRequest

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry
    from pegboard_trainer.examples import Key
    from pegboard_trainer.source import BatchSource


@dataclass(slots=True)
class Run:
    """State has one owner: the loop asks here when to do what, and everything outside the step is done here.

    evaluate: returns the metrics of the held-out data, None without such data. saver: writes step folders.
    Saves and validations are remembered by step, so that asking twice does the work once. In a run of several processes all of
    them ask and decide alike; loggers and observers hear of it in the first one.
    """

    info: RunInfo
    registry: Registry
    loggers: list[Logger]
    stop: StopRequest
    saver: Saver
    evaluate: Callable[[], Mapping[str, float]] | None = None
    patience: Patience = field(default_factory=Patience)
    log_every: int = 1
    validate_every: int | None = None
    save_every: int | None = None
    save_minutes: float | None = None
    save_last: bool = True
    saved: int | None = None
    stopping: bool = False
    _due: bool = False
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def first_step(self) -> int:
        """The step to take next, from 1."""
        return self.info.start_step + 1

    @property
    def total_steps(self) -> int:
        """The last step."""
        return self.info.total_steps

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run before its last step."""
        return self.stopping and self.stop.number is not None and self.saved != self.total_steps

    def look(self, step: int) -> None:
        """Look at the clock, the signals and the writer in the background, once after each step: what all processes agree on."""
        late = self.save_minutes is not None and time.monotonic() - self._saved_at > 60 * self.save_minutes
        signalled, self._due, writing = self.saver.world.any([self.stop.number is not None, late, self.saver.writing])
        self.stopping = self.stopping or signalled
        if not writing:
            self._tell_saved(self.saver.finish())

    def logs(self, step: int) -> bool:
        """Whether metrics are logged after `step`."""
        return step % self.log_every == 0 or step == self.total_steps

    def validates(self, step: int) -> bool:
        """Whether the held-out loss is measured after `step`."""
        if self.evaluate is None or (self.stopping and step != self.total_steps):
            return False
        return step == self.total_steps or (self.validate_every is not None and step % self.validate_every == 0)

    def saves(self, step: int) -> bool:
        """Whether a step folder is written after `step`."""
        if step == self.total_steps and self.save_last:
            return True
        return self._due or (self.save_every is not None and step % self.save_every == 0)

    def start(self) -> None:
        """Tell loggers and observers."""
        self._tell("start", self.info)
        if self.saver.world.first:
            self.registry.hooks.call("run_started", run=self.info)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand numbers to loggers and observers."""
        self._tell("log", step, metrics)
        if self.saver.world.first:
            self.registry.hooks.call("step_finished", step=step, metrics=metrics)

    def message(self, text: str) -> None:
        """Hand a line for people to the loggers."""
        self._tell("message", text)

    def validate(self, step: int) -> None:
        """Measure the held-out loss, if there is held-out data. A run that has not become better for too long stops."""
        if self.evaluate is not None:
            metrics = dict(self.evaluate())
            self.log(step, metrics)
            if self.patience.is_over(step, metrics):
                self.message(f"stopped after step {step}: {self.patience.describe()}")
                self.stopping = True

    def save(self, step: int) -> None:
        """Write the step folder, unless it is there already."""
        if self.saved != step:
            self._tell_saved(self.saver.finish())
            self.saver.save(step, self.patience)
            self.saved, self._saved_at = step, time.monotonic()
            if not self.saver.background:
                self._tell_saved(self.saver.finish())

    def finish(self, status: str) -> None:
        """Tell loggers and observers that the run ended."""
        self._tell("finish", status)
        if self.saver.world.first:
            self.registry.hooks.call("run_finished", status=status)

    def wait(self) -> None:
        """Wait for what is written in the background."""
        self._tell_saved(self.saver.finish())

    def _tell_saved(self, done: tuple[int, Path] | None) -> None:
        if done is not None and self.saver.world.first:
            self.registry.hooks.call("checkpoint_saved", step=done[0], folder=done[1])

    def _tell(self, method: str, *arguments: object) -> None:
        for logger in list(self.loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                self.loggers.remove(logger)
                self.registry.warn_once(f"logger {type(logger).__name__} is muted: {type(error).__name__}: {error}")


def save_rows(folder: Path, step: int, keys: Sequence[Key], source: BatchSource, tokenizer: Tokenizer) -> Path:
    """Write the examples of a step that went wrong, with the places that they come from, and return the file."""
    path = folder / f"not-finite-step-{step:08d}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for key in keys:
            for row in source.at(key):
                text = tokenizer.decode(row.input_ids, skip_special=False)
                part = {"part": row.part} if row.part else {}
                line = {"from": source.describe(key), **part, "text": text, "input_ids": row.input_ids}
                file.write(json.dumps(line) + "\n")
    return path
