"""Whether the wheel is installed and a GPU is here that it has kernels for."""

from __future__ import annotations

from pegboard.plugins.spec import Probe
from pegboard_cuda.probe import library


def probe() -> Probe:
    """Hopper alone: what the wheel has for older GPUs is no faster than the kernels that are there without it."""
    return library("fa3-fwd", "pip install 'pegboard-fa3[kernels]'", (9,))
