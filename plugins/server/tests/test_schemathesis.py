"""schemathesis reads openapi.json and tries what it allows, and what it does not, on a real port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.peers
@pytest.mark.timeout(3000)
def test_the_api_keeps_its_word(start: Callable[..., Any], listen: Callable[..., Any]) -> None:
    with listen(start({"max_model_len": 512})) as url:
        program = Path(sys.executable).with_name("st")
        command = [program, "run", f"{url}/openapi.json", "--max-examples", "10", "--seed", "1", "--no-color"]
        # A request may be well formed and still be refused: an option against another one, a prompt longer than the context.
        command += ["--phases", "coverage,fuzzing", "--exclude-checks", "positive_data_acceptance"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
