"""Decode steps captured once and replayed: the whole model is then one piece of work for the device."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.errors import DeviceError
from pegboard.types import AttentionInputs, ForwardContext, KVCache
from pegboard_engine.feed import computes_apart

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.platform import Graph
    from pegboard_engine.adapters import ServedAdapters

log = logging.getLogger("pegboard.engine")

_MOST_GRAPHS = 24
_MOST_SEEN = 1024
_SEEN_BEFORE = 2

_Shape = tuple[int, int, tuple[int, ...]]
"""Rows, pages of a sequence, and the adapter's slot of each sequence where any has one."""


@dataclass(slots=True)
class _Captured:
    """A graph with the tensors that it reads and writes."""

    graph: Graph
    ids: Tensor
    positions: Tensor
    plan: Any
    logits: Tensor
    extents: Tensor | None


class DecodeGraphs:
    """Graphs by shape. A shape is captured when it comes for the third time, and those not used for longest are dropped.

    What adapters add is arranged on the host: where rows have some, which row has which is part of the shape. It stays the same from step
    to step while nobody comes or goes.

    num_captured: how often a graph was made. num_replayed: how often one served.
    """

    def __init__(self, built: BuiltModel, cache: KVCache, groups: int, adapters: ServedAdapters) -> None:
        self.num_captured = self.num_replayed = 0
        self._built = built
        self._cache = cache
        self._groups = groups
        self._adapters = adapters
        self._changes = adapters.changes
        self._graphs: OrderedDict[_Shape, _Captured] = OrderedDict()
        self._seen: dict[_Shape, int] = {}
        self._usable = usable(built)
        # One graph runs at a time: they share their working memory.
        self._memory = built.platform.graph_memory(built.device.index or 0) if self._usable else None

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        inputs: AttentionInputs,
        extents: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor | None:
        """Return the logits [N, V] of a decode batch, N sequences with one token each; None when it is to be run without a graph.

        extents: [N] as of `ForwardContext`, for models that have a `rope_limit`. slots: [N] its `adapter_slots`.

        They are overwritten by the next step of this shape.
        """
        if not self._usable or not len(inputs.query_lens):
            return None
        if self._changes != self._adapters.changes:
            self._forget_adapted()
        count = len(inputs.query_lens)
        width = self._built.platform.graph_batch(count)
        shape = width, self._pages(inputs), () if slots is None else tuple(slots.tolist())
        inputs.pad_to, inputs.pad_pages = shape[:2]
        found = self._graphs.get(shape)
        if found is None:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] > _SEEN_BEFORE:
                found = self._capture(shape, inputs)
            elif len(self._seen) > _MOST_SEEN:
                self._seen.clear()
            if found is None:
                inputs.pad_to = inputs.pad_pages = None
                return None
        self._graphs.move_to_end(shape)
        found.ids[:count].copy_(ids)
        found.positions[:count].copy_(positions)
        if found.extents is not None and extents is not None:
            found.extents[:count].copy_(extents)
        if count < shape[0]:
            found.ids[count:] = 0
            found.positions[count:] = 0
        found.plan.update_(inputs)
        found.graph.replay()
        self.num_replayed += 1
        return found.logits[:count]

    def clear(self) -> None:
        """Drop every graph, as when addresses change."""
        self._graphs.clear()
        self._seen.clear()

    def _forget_adapted(self) -> None:
        """Drop the graphs that hold what adapters were, and those of layers that have changed places with others."""
        self._changes = self._adapters.changes
        for shape in [shape for shape in self._graphs if shape[2]]:
            del self._graphs[shape]
        self._seen = {shape: seen for shape, seen in self._seen.items() if not shape[2]}

    def _pages(self, inputs: AttentionInputs) -> int:
        if not self._built.attention.static_pages:
            return 0
        longest = -(-int(max(inputs.seq_lens)) // self._cache.layout.page_size)
        return 1 << (longest - 1).bit_length()

    def _capture(self, shape: _Shape, inputs: AttentionInputs) -> _Captured | None:
        built, device, rows = self._built, self._built.device, shape[0]
        ids, positions = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
        extents = None if built.model.rope_limit is None else torch.zeros_like(ids)
        plan = built.attention.plan(inputs, device, self._cache.layout)
        logits: list[Tensor] = []
        slots = torch.tensor([*shape[2], *[-1] * (rows - len(shape[2]))]) if shape[2] else None
        arranged: dict[Any, Any] = {}

        def work() -> None:
            plans = [plan] * self._groups
            ctx = ForwardContext(
                positions=positions,
                plans=plans,
                cache=self._cache,
                extents=extents,
                adapter_slots=slots,
                adapter_plans=arranged,
            )
            logits[:] = [built.model.head(built.model(ids, ctx))]

        try:
            graph = built.platform.capture(work, device.index or 0, self._memory)
        except (DeviceError, RuntimeError) as error:
            log.warning("decode steps are run without graphs: %s", error)
            self._usable = False
            return None
        self.num_captured += 1
        found = self._graphs[shape] = _Captured(graph, ids, positions, plan, logits[0], extents)
        if len(self._graphs) > _MOST_GRAPHS:
            dropped, _ = self._graphs.popitem(last=False)
            self._seen.pop(dropped, None)
        return found


def captures_whole_steps(built: BuiltModel) -> bool:
    """Whether decode steps are captured by batch size alone, from the ids to the tokens."""
    return computes_apart(built) and not built.attention.static_pages and usable(built)


def usable(built: BuiltModel) -> bool:
    """Whether decode steps of this model can be captured and gain by it."""
    if built.attention.graph_safe == "none" or "graphs" not in built.platform.capabilities(built.device.index or 0):
        return False
    # On the host a static plan that reads padding costs more than a graph saves.
    return built.device.type != "cpu" or not built.attention.static_pages
