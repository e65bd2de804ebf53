"""The logger: one W&B run, which a resumed run continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import wandb

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard_wandb.options import WandbOptions

if TYPE_CHECKING:
    from wandb import Run

FILE = "wandb.json"
"""Holds the id of the run, so that a resumed run goes on under it."""


class WandbLogger(Logger):
    """Records metrics over `step`, in which charts are drawn: W&B's own counter cannot go back when a run is resumed."""

    def __init__(self, options: WandbOptions) -> None:
        self._options = options
        self._run: Run | None = None

    def start(self, run: RunInfo) -> None:
        """Begin a run, or go on with the one that the folder knows of."""
        options = self._options
        known = _known(run.folder) if run.start_step else None
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            name=options.name or f"{run.name}/{run.folder.name}",
            group=options.group,
            tags=options.tags or None,
            notes=options.notes,
            mode=options.mode,
            dir=str(run.folder),
            config=dict(run.config),
            id=known,
            resume=None if known is None else "allow",
            # Several runs in one process do not end one another.
            reinit="create_new",
            # The terminal belongs to the console logger: a progress bar is no log.
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")
        (run.folder / FILE).write_text(json.dumps({"id": self._run.id, "project": options.project}) + "\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers; they are sent, or written, in the background."""
        if self._run is None:
            raise RuntimeError("log() before start()")
        self._run.log({**metrics, "step": step})

    def finish(self, status: str) -> None:
        """Write what is left and end the run; a failed one is shown as such."""
        if self._run is not None:
            self._run.summary["status"] = status
            self._run.finish(exit_code=1 if status == "failed" else 0)
            self._run = None


def _known(folder: Path) -> str | None:
    """Return the id of the run that an earlier part recorded, None where it recorded none."""
    try:
        return str(json.loads((folder / FILE).read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
