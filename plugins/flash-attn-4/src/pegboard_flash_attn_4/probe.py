"""Whether the wheel is installed and a GPU is here that it has kernels for."""

from __future__ import annotations

from pegboard.plugins.spec import Probe
from pegboard_cuda.probe import library


def probe() -> Probe:
    """Hopper and Blackwell of data centres, for which its kernels are written."""
    return library("flash-attn-4", "pip install 'pegboard-flash-attn-4[kernels]'", (9, 10))
