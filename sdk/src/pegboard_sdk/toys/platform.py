"""The host as a platform, with nothing of its own."""

from __future__ import annotations

import torch

from pegboard.errors import DeviceError
from pegboard.interfaces.platform import DeviceInfo, Phase, Platform
from pegboard.types import AttentionSpec

_GIGABYTE = 1 << 30


class HostPlatform(Platform):
    """torch's host device in float64, so that tests compare exactly. It claims a fixed gigabyte of memory."""

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(0, "host", _GIGABYTE, _GIGABYTE)]

    def device(self, index: int = 0) -> torch.device:
        if index != 0:
            raise DeviceError(f"there is no host device {index}", fix="the host is one device: use device 0")
        return torch.device("cpu")

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset()

    def default_dtype(self, index: int = 0) -> torch.dtype:
        return torch.float64

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("reference",)

    def synchronize(self, index: int = 0) -> None:
        """Nothing runs behind the caller's back."""
