"""The logger: an event file in the run's folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from typing import BinaryIO

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard_tensorboard.events import scalars_event, start_event, text_event, version_event
from pegboard_tensorboard.records import record


class TensorBoardLogger(Logger):
    """Writes scalars, and the configuration and messages as texts. A resumed run adds a file of its own."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._step = 0

    def start(self, run: RunInfo) -> None:
        """Open a file whose name sorts after those of earlier parts of the run: readers take them in that order."""
        run.folder.mkdir(parents=True, exist_ok=True)
        earlier = len(list(run.folder.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{earlier:06d}"
        self._file = (run.folder / name).open("xb")
        self._step = run.start_step
        self._write(version_event(time.time()))
        # Step 0 was measured by a run that starts anew, or else belongs to the part before.
        self._write(start_event(time.time(), run.start_step + 1 if run.start_step else 0))
        config = json.dumps(dict(run.config), indent=2, ensure_ascii=False, default=str)
        self._text("config", "\n".join("    " + line for line in config.splitlines()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one event and hand it to the system at once, so that a crash loses nothing that was logged."""
        self._step = step
        self._write(scalars_event(time.time(), step, metrics))

    def message(self, text: str) -> None:
        """Add a line to the texts."""
        self._text("messages", text)

    def finish(self, status: str) -> None:
        """Write how the run ended and close the file."""
        if self._file is not None:
            self._text("status", status)
            self._file.close()
            self._file = None

    def _text(self, tag: str, text: str) -> None:
        self._write(text_event(time.time(), self._step, tag, text))

    def _write(self, event: bytes) -> None:
        if self._file is None:
            raise RuntimeError("log() before start()")
        self._file.write(record(event))
        self._file.flush()
