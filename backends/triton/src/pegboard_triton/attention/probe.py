"""Whether Triton is there, found without importing it."""

from __future__ import annotations

from importlib import util

from pegboard.plugins.spec import Probe


def probe() -> Probe:
    """Ask for the package alone: which device it computes on is the platform's business."""
    if util.find_spec("triton") is None:
        return Probe(False, False, "Triton is not installed")
    return Probe(True, True, "Triton is installed")
