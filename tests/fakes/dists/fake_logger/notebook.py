"""Writes everything that it hears into one file."""

import json

from pegboard.interfaces.logger import Logger


class Notebook(Logger):
    """A line an event."""

    def start(self, run):
        self.path = run.folder / "notebook.jsonl"
        self._write(["start", run.total_steps])

    def log(self, step, metrics):
        self._write(["log", step, dict(metrics)])

    def message(self, text):
        self._write(["message", text])

    def finish(self, status):
        self._write(["finish", status])

    def _write(self, event):
        with self.path.open("a") as file:
            print(json.dumps(event), file=file)
