"""A simulated device as a platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from pegboard.interfaces.platform import Graph, Phase
from pegboard_sdk.simulated.device import SimulatedDevice
from pegboard_sdk.toys.platform import HostPlatform


class SimulatedPlatform(HostPlatform):
    """A device that computes apart, copies from pinned memory and captures graphs. A subclass sets its device.

    replaced: ops by name, as of `kernels`.
    """

    simulated: ClassVar[SimulatedDevice]
    replaced: ClassVar[Mapping[str, Callable[..., Any]]] = {}

    def device(self, index: int = 0) -> torch.device:
        super().device(index)
        return self.simulated.device

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset({"apart", "graphs", "pinned"})

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return self.replaced

    def capture(self, work: Callable[[], None], index: int = 0, memory: object | None = None) -> Graph:
        return self.simulated.capture(work)

    def synchronize(self, index: int = 0) -> None:
        torch.get_device_module(self.simulated.device).synchronize()
