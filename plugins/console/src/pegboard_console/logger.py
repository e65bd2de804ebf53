"""The logger: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard_console.options import ConsoleOptions
from pegboard_console.show import describe, summary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class ConsoleLogger(Logger):
    """Writes to standard error, which leaves standard output to what a command prints as its result."""

    def __init__(self, options: ConsoleOptions, console: Console | None = None) -> None:
        self._options = options
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._name = ""
        self._latest: dict[str, float] = {}

    def start(self, run: RunInfo) -> None:
        """Show the run's name and, with a bar, its first state."""
        from rich.console import Console

        if self._console is None:
            self._console = Console(file=sys.stderr, highlight=False)
        self._total, self._name, self._latest = run.total_steps, run.name, {}
        if self._options.style == "bar" or (self._options.style == "auto" and self._console.is_terminal):
            self._start_bar(run)
        else:
            begin = f"from step {run.start_step + 1}" if run.start_step else f"{run.total_steps} steps"
            self._print(f"{run.name}: {begin}, run folder {run.folder}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print a line every so many steps; validation results always get a line of their own."""
        self._latest.update(metrics)
        validation = {name: value for name, value in metrics.items() if name.startswith("validation/")}
        if validation:
            self._print(f"step {step}/{self._total}  {describe(validation, prefixed=True)}")
        plain = {name: value for name, value in metrics.items() if name not in validation}
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, numbers=summary(self._latest))
        elif plain and (step % self._options.every == 0 or step in (1, self._total)):
            self._print(f"step {step}/{self._total}  {describe(plain)}")

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._print(text)

    def finish(self, status: str) -> None:
        """Leave the bar as it is and say how the run ended, unless it simply finished."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if status != "finished":
            self._print(f"{self._name}: {status}")

    def _start_bar(self, run: RunInfo) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
        )
        self._progress = Progress(*columns, console=self._console, refresh_per_second=4)
        self._task = self._progress.add_task(run.name, total=run.total_steps, completed=run.start_step, numbers="")
        self._progress.start()

    def _print(self, text: str) -> None:
        if self._console is not None:
            # Wrapping at 80 columns would break lines in a log file.
            self._console.print(text, markup=False, soft_wrap=True)
