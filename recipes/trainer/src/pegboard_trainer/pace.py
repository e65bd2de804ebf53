"""How fast a run goes, and what memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping

import torch


class Pace:
    """Turns what was counted since the last call into rates. Owns the clock of a run.

    peak_flops: operations a second of all devices together; None where utilisation is not asked for.
    """

    def __init__(self, device: torch.device, peak_flops: float | None = None) -> None:
        self._device = device
        self._peak = peak_flops
        self._began = time.perf_counter()

    def restart(self) -> None:
        """Begin an interval: what was done until now (a validation, a checkpoint) is no training."""
        self._began = time.perf_counter()

    def complete(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers of an interval with `tokens_per_second`, `trained_tokens_per_second`, `mfu` (model FLOPs utilisation, 0 to
        1) and `memory_gb` (10^9 bytes, the most so far on this rank).

        numbers: with "tokens", "trained_tokens" and "flops" over all ranks, of which the last is left out of what is returned.
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        told = {name: value for name, value in numbers.items() if name != "flops"}
        for name in ("tokens", "trained_tokens"):
            told[f"{name}_per_second"] = numbers[name] / seconds
        if self._peak and numbers["flops"]:
            told["mfu"] = numbers["flops"] / seconds / self._peak
        return {**told, "memory_gb": peak_memory(self._device) / 1e9}


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were taken so far: on an accelerator by tensors, on the host by the whole process."""
    if device.type == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    used: int = torch.get_device_module(device).max_memory_allocated(device)
    return used
