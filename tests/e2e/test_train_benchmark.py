"""benchmarks/train.py: what it reads off a trace, and all of it on a tiny shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "train.py"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FILE.parent))
    spec = util.spec_from_file_location("train", FILE)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_where_the_time_of_a_step_went(program: Any, tmp_path: Path) -> None:
    def event(name: str, kind: str, start: float, length: float, number: int) -> dict[str, Any]:
        return {"ph": "X", "name": name, "cat": kind, "ts": start, "dur": length, "args": {"correlation": number}}

    events = [
        event("launch", "cuda_runtime", 0, 1, 1),
        event("launch", "cuda_runtime", 1000, 1, 2),
        event("mm", "kernel", 2000, 500, 1),
        event("norm", "kernel", 3500, 1000, 2),
        event("mm", "kernel", 4000, 1000, 3),
        event("copy", "gpu_memcpy", 6000, 1000, 4),
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": [*events, {"ph": "i"}]}))
    told = program.profile(tmp_path / "trace.json")
    assert (told["span_ms"], told["idle_ms"], told["count"], told["ahead_ms"]) == (5.0, 2.0, 4, 2.25)
    assert [gap[0] for gap in told["gaps"]] == [1.0, 1.0]
    assert told["kernels"] == [("mm", 2, 1.5), ("norm", 1, 1.0), ("copy", 1, 1.0)]
    lines = program.profile_lines("full", told, 1)
    assert "2.0 of them idle" in lines[0] and lines[-1].split() == ["2.00", "ms", "others"]


def test_a_row_that_failed_says_why(program: Any) -> None:
    assert program.line("full", {"failed": "no memory"}, targets=True).split(maxsplit=1) == [
        "full",
        "failed: no memory",
    ]
    told = {
        "tokens_per_second": 95123.4,
        "gib": 15.81,
        "step_seconds": 0.17,
        "first_step_s": 12.34,
        "losses": [3.0, 2.0],
    }
    cells = program.line("lora", told, targets=True).split()
    assert cells == ["lora", "95,123", "90,000", "15.8", "22", "0.1700", "12.3", "3.0000", "…", "2.5000"]


@pytest.mark.slow
def test_rows_of_a_tiny_shape(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, str(FILE), "tiny", "--batch", "2", "--length", "32", "--steps", "2", "--warmup", "1"]
    command += ["--rows", "full", "qlora-checkpointing", "--profile", "--json", str(told)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(told.read_text())
    for row in ("full", "qlora-checkpointing"):
        assert rows[row]["tokens_per_second"] > 0 and rows[row]["first_step_s"] > 0
        assert len(rows[row]["losses"]) == 3 and rows[row]["profile"]["kernels"]
    assert "tokens/s" in done.stdout
