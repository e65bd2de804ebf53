"""Whole decode steps as graphs of a device: from the ids to the sampled tokens, over inputs that lie where `DeviceFeed` puts them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pegboard.ops import KernelTable
from pegboard.types import ForwardContext, KVCache, StepPlan
from pegboard_engine.buckets import Buckets
from pegboard_engine.feed import DeviceFeed, Fed

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.platform import Graph

log = logging.getLogger("pegboard.engine")


@dataclass(slots=True)
class _Captured:
    """A graph with what it writes. The tensors are overwritten when it runs again."""

    graph: Graph
    plan: Any
    logits: Tensor
    told: Tensor


class CapturedSteps:
    """Decode steps by batch size, captured a few at a time while others are served.

    The greatest logit of each row is found inside the graph, and kept as its slot's last token; whoever samples otherwise does so from
    the logits, behind it. num_captured: graphs that were made. num_replayed: steps that one served.
    """

    def __init__(self, built: BuiltModel, cache: KVCache, feed: DeviceFeed, kernels: KernelTable, groups: int) -> None:
        self.num_captured = self.num_replayed = 0
        self._built, self._cache, self._feed, self._kernels, self._groups = built, cache, feed, kernels, groups
        self._graphs: dict[int, _Captured] = {}
        self._buckets = Buckets.up_to(feed.num_slots, built.platform.graph_batch)
        self._usable = True
        # One graph runs at a time: they share their working memory.
        self._memory = built.platform.graph_memory(built.device.index or 0)

    def width(self, plan: StepPlan) -> int | None:
        """Return the sequences of the captured step that serves a plan; None where it is to be run without a graph."""
        if not self._usable or plan.num_decodes != len(plan.slots) or not plan.num_decodes or plan.adapters is not None:
            return None
        return self._buckets.serving(plan.num_decodes)

    def run(self, fed: Fed, width: int) -> tuple[Tensor, Tensor]:
        """Return the logits [N, V] of a decode batch that was fed for `width` sequences, and what is told of the greedy choice, as
        `Started.told`.
        """
        found = self._graphs[width]
        found.plan.update_(fed.inputs)
        found.graph.replay()
        self.num_replayed += 1
        count = len(fed.inputs.query_lens)
        return found.logits[:count], found.told[:count]

    def capture_due(self) -> None:
        """Capture a step, if its turn has come. To be called behind a step, while the device computes it."""
        if self._usable and (size := self._buckets.due()) is not None:
            self._capture(size)

    def capture_next(self) -> bool:
        """Capture one more step while nothing else is to be done; return whether there are others."""
        if self._usable and (size := self._buckets.next()) is not None:
            self._capture(size)
        return self._usable and self._buckets.next() is not None

    def _capture(self, size: int) -> None:
        built, feed = self._built, self._feed
        # Its values are computed while it is captured: the last step's would be computed a second time, from other tokens.
        fed = feed.neutral(size)
        fed.inputs.pad_to, fed.inputs.pad_pages = size, 0
        made: list[Any] = []

        def work() -> None:
            made[:] = self._step(fed, plan)

        try:
            plan = built.attention.plan(fed.inputs, built.device, self._cache.layout)
            graph = built.platform.capture(work, built.device.index or 0, self._memory)
        except Exception as error:  # steps without graphs give the same, and tell what is really wrong
            log.warning("decode steps are run without graphs: %s: %s", type(error).__name__, error)
            self._usable = False
            return
        self.num_captured += 1
        self._buckets.done.add(size)
        self._graphs[size] = _Captured(graph, plan, *made)

    def _step(self, fed: Fed, plan: Any) -> tuple[Tensor, Tensor]:
        """The work of a step, all of it on the device."""
        built, feed = self._built, self._feed
        ctx = ForwardContext(
            positions=fed.positions, plans=[plan] * self._groups, cache=self._cache, extents=fed.extents
        )
        logits = built.model.head(built.model(feed.known(fed.ids, fed.slots), ctx))
        ids, most = self._kernels.sample(logits)
        return logits, self._kernels.keep_last(ids, most, feed.last, fed.slots)
