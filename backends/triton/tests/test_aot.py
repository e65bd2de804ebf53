"""Every kernel compiles for every target without a GPU. A process of its own: this one may interpret kernels."""

import os
import subprocess
import sys

import pytest

from pegboard_triton.aot import TARGETS, target


@pytest.mark.slow
@pytest.mark.parametrize("text", TARGETS)
def test_every_kernel_compiles(text: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pegboard_triton.aot", text]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


@pytest.mark.parametrize("text", ["cuda", "cuda:hopper", "hip:90", "vulkan:1"])
def test_unknown_targets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown target"):
        target(text)
