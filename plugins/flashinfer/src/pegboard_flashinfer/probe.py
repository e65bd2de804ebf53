"""Whether the wheel is installed and a GPU is here that it has kernels for."""

from __future__ import annotations

from pegboard.plugins.spec import Probe
from pegboard_cuda.probe import library


def probe() -> Probe:
    """Ampere and later. Whether its kernels come ready or are compiled at their first use is known only then."""
    return library("flashinfer-python", "pip install 'pegboard-flashinfer[kernels]'", (8, 9, 10, 11, 12))
