"""NVIDIA GPUs as a platform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pegboard.errors import DeviceError
from pegboard.interfaces.platform import DeviceInfo, Graph, Phase, Platform
from pegboard.types import AttentionSpec

WARM_UPS = 2
"""Runs of a piece of work before it is captured: libraries make their handles and choose their kernels in the first ones."""


class CudaPlatform(Platform):
    """The visible NVIDIA GPUs, numbered as CUDA_VISIBLE_DEVICES leaves them."""

    def devices(self) -> list[DeviceInfo]:
        return [self._info(index) for index in range(torch.cuda.device_count())]

    def device(self, index: int = 0) -> torch.device:
        count = torch.cuda.device_count()
        if not 0 <= index < count:
            there = f"devices 0 to {count - 1} are there" if count else "torch sees no CUDA device"
            raise DeviceError(
                f"there is no cuda device {index}", fix=f"{there}; CUDA_VISIBLE_DEVICES decides which are"
            )
        return torch.device("cuda", index)

    def capabilities(self, index: int = 0) -> frozenset[str]:
        found = {"graphs", "pinned"}
        generation = torch.cuda.get_device_capability(self.device(index))
        if generation >= (8, 0):
            found.add("bf16")
        if generation >= (8, 9):
            found.add("fp8")
        others = (other for other in range(torch.cuda.device_count()) if other != index)
        if any(torch.cuda.can_device_access_peer(index, other) for other in others):
            found.add("p2p")
        return frozenset(found)

    def default_dtype(self, index: int = 0) -> torch.dtype:
        return torch.bfloat16 if "bf16" in self.capabilities(index) else torch.float16

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("sdpa",)

    def synchronize(self, index: int = 0) -> None:
        torch.cuda.synchronize(self.device(index))

    def graph_memory(self, index: int = 0) -> object | None:
        """Return a pool of torch's allocator."""
        with torch.cuda.device(self.device(index)):
            return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], None], index: int = 0, memory: Any = None) -> Graph:
        """Capture `work`, after running it twice on a side stream as capture wants it."""
        device = self.device(index)
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=memory):
                work()
        return graph

    def communication_backend(self) -> str:
        return "nccl"

    def _info(self, index: int) -> DeviceInfo:
        free, total = torch.cuda.mem_get_info(index)
        # What torch's allocator holds but does not use can be allocated too.
        spare = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return DeviceInfo(index, torch.cuda.get_device_name(index), total, free + spare)
