"""A platform over what torch offers alike for every kind of accelerator: its device modules (`torch.get_device_module`).

Streams, events and random numbers need no word of a platform: `torch.Stream(device)`, `torch.Event(device)` and
`torch.Generator(device)` are the same for all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, cast

import torch

from pegboard.errors import DeviceError
from pegboard.interfaces.platform import DeviceInfo, Graph, Platform

WARM_UPS = 1
"""Runs of a piece of work before it is captured: libraries make their handles and kernels are compiled in the first one."""


class AcceleratorPlatform(Platform):
    """The devices of one of torch's device types.

    kind: torch's device type. label: the platform's name in messages. visible: what decides which devices there are, for messages.
    graph_class: name of the class of captured graphs in torch's module of that type; where this torch has none, so has the platform.
    """

    kind: ClassVar[str]
    label: ClassVar[str]
    visible: ClassVar[str]
    graph_class: ClassVar[str]

    @abstractmethod
    def fast_dtypes(self, index: int) -> set[str]:
        """Return the capabilities that are about number formats: "bf16", "fp8" …"""

    def foreign(self) -> str:
        """Return why torch's devices of this type are not this platform's; empty when they are."""
        return ""

    def refusal(self, index: int) -> str:
        """Return why torch cannot compute on a device that it lists; empty when it can."""
        return ""

    @property
    def module(self) -> Any:
        """Torch's module of this device type."""
        return torch.get_device_module(self.kind)

    def count(self) -> int:
        """Return the number of devices."""
        return 0 if self.foreign() else int(self.module.device_count())

    def devices(self) -> list[DeviceInfo]:
        return [self._info(index) for index in range(self.count())]

    def device(self, index: int = 0) -> torch.device:
        count = self.count()
        if not 0 <= index < count:
            there = f"devices 0 to {count - 1} are there" if count else f"torch sees no {self.label} device"
            fix = self.foreign() or f"{there}; {self.visible} decides which are"
            raise DeviceError(f"there is no {self.label} device {index}", fix=fix)
        if reason := self.refusal(index):
            raise DeviceError(
                f"{self.label} device {index} cannot be used: {reason}",
                fix=f"use another device, or a torch that is built for it; {self.visible} decides which devices there are",
            )
        return torch.device(self.kind, index)

    def capabilities(self, index: int = 0) -> frozenset[str]:
        device = self.device(index)
        found = {"pinned", *self.fast_dtypes(index)}
        if self.captures(index):
            found.add("graphs")
        others = (other for other in range(self.count()) if other != index)
        if any(self.module.can_device_access_peer(device, other) for other in others):
            found.add("p2p")
        return frozenset(found)

    def captures(self, index: int) -> bool:
        """Return whether work on this device can be captured."""
        return hasattr(self.module, self.graph_class)

    def default_dtype(self, index: int = 0) -> torch.dtype:
        self.device(index)
        return torch.bfloat16 if "bf16" in self.fast_dtypes(index) else torch.float16

    def synchronize(self, index: int = 0) -> None:
        self.module.synchronize(self.device(index))

    def graph_memory(self, index: int = 0) -> object | None:
        """Return a pool of torch's allocator; None on a device without graphs."""
        if not self.captures(index):
            return None
        with self.module.device(self.device(index)):
            pool: object = self.module.graph_pool_handle()
            return pool

    def capture(self, work: Callable[[], None], index: int = 0, memory: Any = None) -> Graph:
        """Capture `work`, after running it once on a side stream as capture wants it."""
        if not self.captures(index):
            return super().capture(work, index)
        module = self.module
        with module.device(self.device(index)):
            side = module.Stream()
            side.wait_stream(module.current_stream())
            graph: Any = getattr(module, self.graph_class)()
            # Not with torch's context for it, which waits for the device and gives all free memory back, pinned memory too: what is
            # captured between the steps of others must not stop them.
            with module.stream(side):
                for _ in range(WARM_UPS):
                    work()
                graph.capture_begin(*(() if memory is None else (memory,)))
                try:
                    work()
                except BaseException:
                    with suppress(RuntimeError):
                        graph.capture_end()
                    raise
                graph.capture_end()
            module.current_stream().wait_stream(side)
        return cast(Graph, graph)

    def graph_batch(self, count: int) -> int:
        """Return multiples of what a matrix unit pads to anyway, coarser for large batches, of which padding is a small part."""
        if count <= 4:
            return 1 << (count - 1).bit_length()
        step = 8 if count <= 64 else 16 if count <= 256 else 64
        return -(-count // step) * step

    def _info(self, index: int) -> DeviceInfo:
        module = self.module
        free, total = module.mem_get_info(index)
        reserved, allocated = module.memory_reserved(index), module.memory_allocated(index)
        # What torch's allocator holds but does not use can be allocated too, up to the share that this process may have.
        share = getattr(module, "get_per_process_memory_fraction", lambda _: 1.0)(index)
        available = min(free + reserved - allocated, int(share * total) - allocated)
        return DeviceInfo(index, module.get_device_name(index), total, max(0, available))
