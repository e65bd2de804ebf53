"""Whole steps as graphs of a device: from the ids to the sampled tokens, over inputs that lie where `DeviceFeed` puts them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pegboard.ops import KernelTable
from pegboard.types import ForwardContext, KVCache, StepPlan
from pegboard_engine.buckets import Buckets
from pegboard_engine.feed import DeviceFeed, Fed

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.platform import Graph
    from pegboard_engine.adapters import ServedAdapters

log = logging.getLogger("pegboard.engine")


@dataclass(frozen=True, slots=True)
class Kind:
    """What captured steps differ in beside their size. queries: most new tokens of a sequence. adapted: whether rows have adapters."""

    queries: int
    adapted: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """A captured step of a kind, of `width` rows."""

    kind: Kind
    width: int


@dataclass(slots=True)
class _Captured:
    """A graph with what it writes. The tensors are overwritten when it runs again. told: as `Started.told`, of one token a sequence."""

    graph: Graph
    plan: Any
    logits: Tensor
    told: Tensor | None


@dataclass(slots=True)
class _Sizes:
    """The captured steps of a kind, by size. usable: False once one could not be captured."""

    buckets: Buckets
    graphs: dict[int, _Captured] = field(default_factory=dict)
    usable: bool = True


class CapturedSteps:
    """Steps by kind and number of rows, captured a few at a time while others are served.

    Where each sequence has one new token, the greatest logit of each row is found inside the graph, and kept as its slot's last token;
    whoever samples otherwise does so from the logits, behind it. Steps of up to `queries` tokens a sequence, which check proposals, end
    with the logits of all rows. num_captured: graphs that were made. num_replayed: steps that one served.
    """

    def __init__(
        self,
        built: BuiltModel,
        cache: KVCache,
        feed: DeviceFeed,
        kernels: KernelTable,
        groups: int,
        adapters: ServedAdapters,
        queries: int = 1,
    ) -> None:
        self.num_captured = self.num_replayed = 0
        self._built, self._cache, self._feed, self._kernels, self._groups = built, cache, feed, kernels, groups
        self._adapters, self._adapted_key = adapters, adapters.captured_key
        self._queries = min(queries, built.attention.static_queries)
        self._kinds: dict[Kind, _Sizes] = {}
        # One graph runs at a time: they share their working memory.
        self._memory = built.platform.graph_memory(built.device.index or 0)

    def choose(self, plan: StepPlan) -> Chosen | None:
        """Return the captured step that serves a plan; None where it is to be run without a graph."""
        count = len(plan.slots)
        if not count or not len(plan.logits_indices) or "more_rows" in plan.extras:
            return None
        if plan.adapters is not None and not self._adapts():
            return None
        single = plan.num_decodes == count
        if not single and (self._queries == 1 or int(plan.query_lens.max()) > self._queries):
            return None
        kind = Kind(1 if single else self._queries, plan.adapters is not None)
        sizes = self._sizes(kind)
        width = sizes.buckets.serving(len(plan.input_ids)) if sizes.usable else None
        return None if width is None else Chosen(kind, width)

    def run(self, fed: Fed, chosen: Chosen) -> tuple[Tensor, Tensor | None]:
        """Return the logits [T, V] of a batch that was fed for a captured step, and what is told of the greedy choice, as `Started.told`,
        where each sequence has one token.
        """
        found = self._sizes(chosen.kind).graphs[chosen.width]
        found.plan.update_(fed.inputs)
        found.graph.replay()
        self.num_replayed += 1
        count = fed.inputs.num_tokens
        return found.logits[:count], None if found.told is None else found.told[:count]

    def capture_due(self) -> None:
        """Capture a step, if its turn has come. To be called behind a step, while the device computes it."""
        adapts = self._adapts()
        for kind, sizes in self._kinds.items():
            wanted = sizes.usable and (adapts or not kind.adapted)
            if wanted and (size := sizes.buckets.due()) is not None:
                self._capture(kind, size)
                return

    def capture_next(self) -> bool:
        """Capture one more step while nothing else is to be done; return whether there are others."""
        if (found := next(self._left(), None)) is not None:
            self._capture(*found)
        return next(self._left(), None) is not None

    def _left(self) -> Iterator[tuple[Kind, int]]:
        """Yield what is not captured yet, what is most likely to be wanted first."""
        for adapted in (False, True) if self._adapts() else (False,):
            for queries in dict.fromkeys((1, self._queries)):
                sizes = self._sizes(kind := Kind(queries, adapted))
                if sizes.usable and (size := sizes.buckets.next()) is not None:
                    yield kind, size

    def _sizes(self, kind: Kind) -> _Sizes:
        if kind not in self._kinds:
            most = self._feed.num_slots if kind.queries == 1 else self._feed.num_rows
            self._kinds[kind] = _Sizes(buckets_of(self._built, most, kind))
        return self._kinds[kind]

    def _adapts(self) -> bool:
        """Whether steps with the adapters that are loaded can be captured. Those that were, with others that went into other layers, are
        dropped.
        """
        key = self._adapters.captured_key
        if key is not None and key != self._adapted_key:
            self._adapted_key = key
            self._kinds = {kind: sizes for kind, sizes in self._kinds.items() if not kind.adapted}
        return key is not None

    def _capture(self, kind: Kind, size: int) -> None:
        built, feed, sizes = self._built, self._feed, self._sizes(kind)
        # Its values are computed while it is captured: the last step's would be computed a second time, from other tokens.
        fed = feed.neutral(size)
        fed.inputs.pad_to, fed.inputs.pad_pages, fed.inputs.pad_queries = size, 0, kind.queries
        made: list[Any] = []

        def work() -> None:
            made[:] = self._step(fed, plan, kind)

        try:
            plan = built.attention.plan(fed.inputs, built.device, self._cache.layout)
            graph = built.platform.capture(work, built.device.index or 0, self._memory)
        except Exception as error:  # steps without graphs give the same, and tell what is really wrong
            what = "decode steps" if kind.queries == 1 else "steps that check proposed tokens"
            with_them = " with adapters" if kind.adapted else ""
            log.warning("%s%s are run without graphs: %s: %s", what, with_them, type(error).__name__, error)
            sizes.usable = False
            return
        self.num_captured += 1
        sizes.buckets.done.add(size)
        sizes.graphs[size] = _Captured(graph, plan, *made)

    def _step(self, fed: Fed, plan: Any, kind: Kind) -> tuple[Tensor, Tensor | None]:
        """The work of a step, all of it on the device."""
        built, feed = self._built, self._feed
        ctx = ForwardContext(
            positions=fed.positions,
            plans=[plan] * self._groups,
            cache=self._cache,
            extents=fed.extents,
            adapter_rows=fed.adapters if kind.adapted else None,
        )
        logits = built.model.head(built.model(feed.known(fed.ids, fed.slots), ctx))
        if kind.queries > 1:
            return logits, None
        ids, most = self._kernels.sample(logits)
        return logits, self._kernels.keep_last(ids, most, feed.last, fed.slots)


def buckets_of(built: BuiltModel, most: int, kind: Kind) -> Buckets:
    """Return the sizes of captured steps of a kind, of up to `most` rows."""
    return Buckets.up_to(most, built.platform.graph_batch, sparse=kind != Kind(1, False))
