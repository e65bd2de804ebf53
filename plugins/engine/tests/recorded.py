"""A platform that computes on the host as if from memory of its own, with graphs that do their operations again on the same memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pegboard.types import AttentionInputs, KVLayout
from pegboard_sdk.toys.platform import HostPlatform
from pegboard_sdpa.backend import Plan, SdpaAttention
from pegboard_sdpa.static import StaticDecodePlan


class Recording(TorchDispatchMode):
    """The operations of a piece of work. Played again, they read and write the tensors of the first time; Python is not run again."""

    playing = False

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._done: list[tuple[Any, Any, Any, list[Tensor]]] = []
        with self:
            work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._done.append((func, args, kwargs or {}, [x for x in tree_leaves(out) if isinstance(x, Tensor)]))
        return out

    def replay(self) -> None:
        """Do it all again."""
        Recording.playing = True
        for func, args, kwargs, kept in self._done:
            fresh = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for old, new in zip(kept, fresh, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        Recording.playing = False


class Apart(HostPlatform):
    """Captures decode steps of 1, 2, 4, 8 … sequences."""

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset({"apart", "graphs"})

    def capture(self, work: Callable[[], None], index: int = 0, memory: object | None = None) -> Recording:
        work()  # as platforms do that warm up: it must change nothing
        return Recording(work)


class RoomyPlan(StaticDecodePlan):
    """What it copies for a batch is not counted as the step's own: that differs by backend."""

    def update_(self, inputs: AttentionInputs) -> None:
        Recording.playing = True
        super().update_(inputs)
        Recording.playing = False


class StaticAttention(SdpaAttention):
    """Plans of a static shape have room for whole rows of the block table."""

    static_pages = False

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> Plan:
        if inputs.pad_to is not None:
            assert isinstance(inputs.block_table, Tensor) and inputs.device_table is not None
            assert torch.equal(inputs.block_table, inputs.device_table)
            assert layout is not None
            inputs.pad_pages = inputs.block_table.shape[1]
            return RoomyPlan(inputs, device, layout)
        return super().plan(inputs, device, layout)


class Counting(TorchDispatchMode):
    """Counts operations by name, those of graphs left out: what a step gives to a device by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not Recording.playing and not getattr(func, "is_view", False):
            self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))
