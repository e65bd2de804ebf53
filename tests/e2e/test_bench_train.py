"""`peg bench train` with the real recipe on a toy model."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest


def test_steps_of_a_config_are_measured(
    peg: Any, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    options = ("--steps", "2", "--warmup", "1", "--size", "2", "--length", "32", "--json")
    said = peg("bench", "train", "sft", "--config", "lora", f"model={toy_model}", "model.dtype=float32", *options)
    assert said.status == 0, said.err
    told = json.loads(said.out)
    (run,) = told["runs"]
    assert run["tokens"] == 64 and run["steps"] == 2 and len(run["losses"]) == 3
    assert run["tokens_per_second"] > 0 and run["memory_gb"] > 0 and 0 < run["mfu"] < 10
    assert told["medians"]["lora"]["tokens_per_second"] == run["tokens_per_second"]
    assert run["environment"]["platform"] == "cpu"
    assert not list((tmp_path / "temporary").glob("peg-bench-*"))


def test_what_a_run_says_when_it_fails_is_told(peg: Any, toy_model: Path) -> None:
    said = peg("bench", "train", "sft", "--config", "lora", f"model={toy_model}", "adapter.rank=0")
    assert said.status == 2
    assert "adapter.rank" in said.err and "ended with status 2" in said.err
    said = peg("bench", "train", "sft", "--config", "lora", "output=x")
    assert "leave output=… out" in said.err


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes cannot be listed on this system")
def test_a_run_ends_with_the_command_that_started_it(toy_model: Path, tmp_path: Path, start: Any) -> None:
    marked = f"name=marked-{tmp_path.name}-{os.getpid()}"
    given = [
        "--config",
        "lora",
        f"model={toy_model}",
        "model.dtype=float32",
        "--steps",
        "100000",
        "--length",
        "32",
        marked,
    ]
    process = start(["bench", "train", "sft", *given])

    def runs() -> list[int]:
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = file.read_bytes().split(b"\0")
                if marked.encode() in words and b"run" in words:
                    found.append(int(file.parent.name))
        return found

    try:
        while not runs():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        process.communicate()
        assert process.returncode == 143
        assert not runs()
    finally:
        process.kill()
