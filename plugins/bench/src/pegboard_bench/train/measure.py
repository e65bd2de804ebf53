"""A config measured: `peg run` with random tokens in a process of its own."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegboard.errors import PegboardError

HERE = "pegboard_bench.train.data"
TOLD = 12
"""Last lines of a run that failed which people should see."""


@dataclass(frozen=True, slots=True)
class Plan:
    """warmup: steps that do not count, of which the first is slow. size, length: sequences, and tokens of each.

    overrides: of the user's, which come after ours: `data.path=…` measures real data, `optimizer=…` another optimizer.
    """

    recipe: str
    steps: int
    warmup: int
    size: int
    length: int
    overrides: Sequence[str]

    def arguments(self, config: str, output: Path) -> list[str]:
        """Return the arguments of `peg` for a run of a config."""
        own_data = any(text.partition("=")[0] in ("data", "data.path") for text in self.overrides)
        data = (
            []
            if own_data
            else [
                f"data={{use: {HERE}:RandomRows, path: random, format: {{use: {HERE}:RandomTokens, length: {self.length}}}}}"
            ]
        )
        return [
            *("run", self.recipe, "--config", config, *data),
            *(f"batch.size={self.size}", f"batch.length={self.length}", f"steps={self.steps + self.warmup}"),
            *("loggers=[jsonl]", "log_every=1", "checkpoint.every=null", "checkpoint.last=false"),
            *self.overrides,
            f"output={output}",
        ]


def measure(plan: Plan, config: str) -> dict[str, Any]:
    """Run a config and return its figures, ready for JSON. Raises PegboardError with the run's last words when it fails."""
    with tempfile.TemporaryDirectory(prefix="peg-bench-") as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "pegboard", *plan.arguments(config, output)]
        began = time.perf_counter()
        with _ending_with_us():
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            words = "\n".join((done.stderr or done.stdout).rstrip().splitlines()[-TOLD:])
            raise PegboardError(
                f"the run of config {config!r} ended with status {done.returncode}:\n{words}",
                fix=f"try it: peg {' '.join(plan.arguments(config, Path('OUTPUT')))}",
            )
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        environment = json.loads((output / "env.json").read_text(encoding="utf-8"))
    steps = [line for line in lines if "tokens_per_second" in line]
    return {"config": config, **figures(steps, plan.warmup), "seconds": round(seconds, 2), "environment": environment}


@contextmanager
def _ending_with_us() -> Iterator[None]:
    """A context in which SIGTERM is an exception, so that `subprocess.run` ends its process before ours ends."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def figures(steps: Sequence[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Return medians over the steps after the warm-up: tokens a second, seconds a step, MFU; and the most memory, in 10^9 bytes."""
    times = [line["tokens"] / line["tokens_per_second"] for line in steps]
    counted = steps[warmup:]
    mfu = [line["mfu"] for line in counted if line.get("mfu") is not None]
    return {
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in counted),
        "step_seconds": statistics.median(times[warmup:]),
        "fastest_step_seconds": min(times[warmup:]),
        "first_step_seconds": times[0],
        "tokens": steps[-1]["tokens"],
        "mfu": statistics.median(mfu) if mfu else None,
        "memory_gb": steps[-1]["memory_gb"],
        "losses": [line["loss"] for line in steps],
        "steps": len(counted),
    }
