"""Runs as processes, several at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SLICE = 0.05
"""Seconds between looks at the processes."""

PATIENCE = 120.0
"""Seconds that a run has to save a step when the sweep is stopped."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is going. slot: which of the places for jobs it has."""

    number: int
    slot: int
    process: subprocess.Popen[bytes]
    began: float


class Stopped(Exception):
    """SIGTERM came."""


class Jobs:
    """Starts processes in at most `slots` places and tells when they end; stops them all when it is left early."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._running: list[Job] = []

    @property
    def running(self) -> tuple[Job, ...]:
        """What is going now."""
        return tuple(self._running)

    @property
    def free(self) -> int | None:
        """The first free place, None where all are taken."""
        taken = {job.slot for job in self._running}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def start(self, number: int, arguments: Sequence[str], log: Path, slot: int) -> Job:
        """Start `peg` with `arguments`; what it prints is added to `log`. Ctrl-C in the terminal does not reach it."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "pegboard", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(),
            )
        job = Job(number, slot, process, time.perf_counter())
        self._running.append(job)
        return job

    def wait(self) -> tuple[Job, int]:
        """Wait for any to end; return it with its exit status."""
        while True:
            for job in self._running:
                status = job.process.poll()
                if status is not None:
                    self._running.remove(job)
                    return job, status
            time.sleep(SLICE)

    def stop(self) -> None:
        """Ask all to save and end, and end those that do not."""
        for job in self._running:
            job.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for job in self._running:
            try:
                job.process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
        self._running.clear()

    def _environment(self) -> dict[str, str]:
        """Return the environment of a run: jobs that share a machine divide its processors, unless the user did."""
        if self.slots == 1 or "OMP_NUM_THREADS" in os.environ:
            return dict(os.environ)
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {**os.environ, "OMP_NUM_THREADS": str(max(here // self.slots, 1))}


@contextmanager
def stopping(jobs: Jobs, told: Callable[[str], None]) -> Iterator[None]:
    """A context in which Ctrl-C and SIGTERM end the jobs before they end the sweep. told: a line for people."""

    def terminated(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except Stopped:
        jobs.stop()
        raise SystemExit(128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        told("stopping: the runs save a step first; the same command goes on later")
        jobs.stop()
        raise
    finally:
        jobs.stop()
        signal.signal(signal.SIGTERM, before)
