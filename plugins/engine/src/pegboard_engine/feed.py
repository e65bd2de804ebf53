"""From a plan to the tensors that a step reads: as they are on the host, in one copy on a device that computes on its own.

Both keep, by slot, the block table and the token sampled last: a plan tells what changes in the one and asks by an id of -1 for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pegboard.build import BuiltModel
from pegboard.ops import KernelTable
from pegboard.types import AttentionInputs, CachePlan, StepPlan
from pegboard_engine.buckets import captured_rows

_ALIGNED = 16


@dataclass(slots=True)
class Fed:
    """What a step of T tokens of N sequences reads.

    ids, positions: [T] int64; ids that are still unknown are -1 in the inputs of a captured step, which fills them in itself, and
    nowhere else. rows: [P] int64 rows whose hidden states are wanted, None for all of them in order. slots: [M] int64, the slot of
    each sampled row. extents: [T] int64 as of `ForwardContext`, None for models that do not ask. adapters: [T] int64, its
    `adapter_rows`; None where no row has one.
    """

    ids: Tensor
    positions: Tensor
    inputs: AttentionInputs
    rows: Tensor | None
    slots: Tensor
    extents: Tensor | None
    adapters: Tensor | None = None


class Feed(Protocol):
    """last: by slot, the token sampled last, int64 on the device."""

    last: Tensor

    def put(self, plan: StepPlan, width: int | None = None) -> Fed:
        """Return the inputs of a step. width: rows of the captured step that reads them, for one that is served by such."""

    def index(self, values: np.ndarray) -> Tensor:
        """Return int64 numbers where the model is."""


def make_feed(built: BuiltModel, cache: CachePlan, kernels: KernelTable) -> Feed:
    """Return the feed of the device that a model is on. kernels: the op `known_ids`."""
    extents = built.model.rope_limit is not None
    if not computes_apart(built):
        return HostFeed(cache, extents)
    pinned = "pinned" in built.platform.capabilities(built.device.index or 0)
    return DeviceFeed(built.device, cache, extents, pinned, kernels)


def computes_apart(built: BuiltModel) -> bool:
    """Whether the model's device computes behind the caller's back, from memory of its own."""
    return built.device.type != "cpu" or "apart" in built.platform.capabilities(built.device.index or 0)


class HostFeed:
    """The plan's own arrays, where a device computes in the memory that they are in."""

    def __init__(self, cache: CachePlan, extents: bool) -> None:
        self.last = torch.zeros(cache.num_slots, dtype=torch.int64)
        self._table = torch.zeros(cache.num_slots, cache.max_pages, dtype=torch.int32)
        self._extents = extents

    def put(self, plan: StepPlan, width: int | None = None) -> Fed:
        """Return views of the plan's arrays."""
        changed, columns, pages = plan.table
        if len(changed):
            self._table.numpy()[changed, columns] = pages
        ids = torch.from_numpy(plan.input_ids)
        unknown = np.flatnonzero(plan.input_ids[: plan.num_decodes] < 0)
        if len(unknown):
            ids = ids.clone()
            ids[self.index(unknown)] = self.last[self.index(plan.slots[unknown])]
        rows = wanted_rows(plan)
        return Fed(
            ids,
            torch.from_numpy(plan.positions),
            AttentionInputs(
                plan.query_lens,
                plan.seq_lens,
                self._table,
                torch.from_numpy(plan.slot_mapping),
                plan.num_decodes,
                table_rows=plan.slots,
            ),
            None if rows is None else torch.from_numpy(rows),
            self.index(plan.logits_slots),
            torch.from_numpy(extents_of(plan)) if self._extents else None,
            None if plan.adapters is None else torch.from_numpy(adapters_of(plan)),
        )

    def index(self, values: np.ndarray) -> Tensor:
        """Return the numbers as int64."""
        return torch.from_numpy(values.astype(np.int64, copy=False))


class DeviceFeed:
    """One copy a step to the device, which has the block table and the tokens sampled last.

    Steps that only decode, and others that a captured one serves, are always written to the same place, so that it finds its inputs there.
    What has no sequence reads and writes a slot of its own behind the last one, whose pages are all page 0, and has no adapter.

    num_slots: sequences at once. num_rows: rows that a captured step may have.
    """

    def __init__(
        self, device: torch.device, cache: CachePlan, extents: bool, pinned: bool, kernels: KernelTable
    ) -> None:
        self.num_slots = slots = cache.num_slots
        self.num_rows = rows = captured_rows(slots, cache.most_queries)
        self.last = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._device, self._pinned, self._extents, self._kernels = device, pinned, extents, kernels
        # A copy on the host: backends that do not read `device_table` plan from it.
        self._table = torch.zeros(slots + 1, cache.max_pages, dtype=torch.int32)
        self._on_device = torch.zeros_like(self._table, device=device)
        neutral = {
            "ids": np.zeros(rows, np.int64),
            "positions": np.zeros(rows, np.int64),
            "slots": np.full(rows, slots, np.int64),
        }
        if extents:
            neutral["extents"] = np.ones(rows, np.int64)
        if cache.max_adapters:
            neutral["adapters"] = np.full(rows, -1, np.int64)
        self._places, self._size = _lay_out(neutral)
        self._neutral = self._host(self._size)
        _write(self._neutral.numpy(), self._places, neutral)
        self._static = torch.empty_like(self._neutral, device=device).copy_(self._neutral)
        self._views = _views(self._static, self._places)

    def put(self, plan: StepPlan, width: int | None = None) -> Fed:
        """Give a plan's values to the device; for a captured step of `width` rows, return all of its inputs."""
        changed, columns, pages = plan.table
        count = len(plan.slots)
        arrays: dict[str, np.ndarray] = {}
        if len(changed):
            table = self._table.numpy()
            table[changed, columns] = pages
            # Read back, so that of two changes of one place both are the later one, in whatever order they are made.
            arrays["changed"] = changed.astype(np.int64) * table.shape[1] + columns
            arrays["pages"] = table[changed, columns]
        arrays |= {"ids": plan.input_ids, "positions": plan.positions}
        if self._extents:
            arrays["extents"] = extents_of(plan)
        if plan.adapters is not None:
            arrays["adapters"] = adapters_of(plan)
        static = width is not None or (plan.num_decodes == count and wanted_rows(plan) is None)
        views = self._put_static(plan, arrays) if static else self._put_ragged(plan, arrays)
        if width is None:
            ids, tokens = self._known(views, plan), len(plan.input_ids)
        else:
            ids, tokens = views["ids"], width
        inputs = AttentionInputs(
            plan.query_lens,
            plan.seq_lens,
            self._table,
            torch.from_numpy(plan.slot_mapping),
            plan.num_decodes,
            table_rows=plan.slots,
            device_table=self._on_device,
        )
        rows, slots = views.get("rows"), views["slots"]
        if static:
            slots, wanted = slots[:tokens], wanted_rows(plan)
            if wanted is not None:
                rows = self.index(wanted)
                slots = slots.index_select(0, rows)
        extents = views["extents"][:tokens] if self._extents else None
        adapters = views["adapters"][:tokens] if plan.adapters is not None else None
        return Fed(ids[:tokens], views["positions"][:tokens], inputs, rows, slots, extents, adapters)

    def neutral(self, width: int) -> Fed:
        """Put what may be computed any number of times in the place of captured steps, and return it for `width` rows."""
        self._static.copy_(self._neutral, non_blocking=True)
        views = self._views
        ones: Any = np.ones(width, np.int32)
        inputs = AttentionInputs(
            ones,
            ones,
            self._table,
            torch.zeros(width, dtype=torch.int64),
            width,
            table_rows=self.num_slots * ones,
            device_table=self._on_device,
        )
        own = {name: view[:width] for name, view in views.items()}
        return Fed(own["ids"], own["positions"], inputs, None, own["slots"], own.get("extents"), own.get("adapters"))

    def known(self, ids: Tensor, slots: Tensor) -> Tensor:
        """Return ids [N] with those of -1 replaced by the token that their slot sampled last."""
        found: Tensor = self._kernels.known_ids(ids, self.last, slots)
        return found

    def index(self, values: np.ndarray) -> Tensor:
        """Copy numbers to the device as int64."""
        host = self._host(8 * len(values)).view(torch.int64)
        host.numpy()[:] = values
        return host.to(self._device, non_blocking=True)

    def _put_static(self, plan: StepPlan, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        host = self._host(self._size)
        block = host.numpy()
        block[:] = self._neutral.numpy()
        arrays["slots"] = plan.slots if plan.num_decodes == len(plan.slots) else np.repeat(plan.slots, plan.query_lens)
        _write(block, self._places, {name: arrays[name] for name in self._places if name in arrays})
        self._static.copy_(host, non_blocking=True)
        if "changed" in arrays:
            self._change(self._put({name: arrays[name] for name in ("changed", "pages")}))
        return self._views

    def _put_ragged(self, plan: StepPlan, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        arrays |= {
            "slots": plan.logits_slots.astype(np.int64),
            "decoding": plan.slots[: plan.num_decodes].astype(np.int64),
        }
        rows = wanted_rows(plan)
        if rows is not None:
            arrays["rows"] = rows
        views = self._put(arrays)
        if "changed" in arrays:
            self._change(views)
        return views

    def _put(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        places, size = _lay_out(arrays)
        host = self._host(size)
        _write(host.numpy(), places, arrays)
        return _views(host.to(self._device, non_blocking=True), places)

    def _change(self, views: Mapping[str, Tensor]) -> None:
        self._on_device.view(-1).index_copy_(0, views["changed"], views["pages"])

    def _known(self, views: Mapping[str, Tensor], plan: StepPlan) -> Tensor:
        """Return the ids with those that are unknown filled in."""
        count = plan.num_decodes
        if not count or (plan.input_ids[:count] >= 0).all():
            return views["ids"]
        slots = views["decoding"] if "decoding" in views else views["slots"]
        known = self.known(views["ids"][:count], slots[:count])
        if count == len(plan.input_ids):
            return known
        views["ids"][:count] = known
        return views["ids"]

    def _host(self, size: int) -> Tensor:
        # torch keeps pinned memory and gives it out again when the copies from it are over.
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


def wanted_rows(plan: StepPlan) -> np.ndarray | None:
    """Return the rows of T whose hidden states a plan asks for, those to sample from first; None for all in order."""
    more = plan.extras.get("more_rows")
    if more is not None:
        return np.concatenate([plan.logits_indices, more])
    rows: np.ndarray = plan.logits_indices
    return None if len(rows) == len(plan.input_ids) else rows


def extents_of(plan: StepPlan) -> np.ndarray:
    """Return [T] int64, how many tokens each row's sequence has: those known to the plan's maker, or so far."""
    lens = np.asarray(plan.extras.get("extents", plan.seq_lens), dtype=np.int64)
    return np.repeat(lens, plan.query_lens)


def adapters_of(plan: StepPlan) -> np.ndarray:
    """Return [T] int64, the adapter's slot of each row of a plan that has some."""
    assert plan.adapters is not None
    return np.repeat(plan.adapters.astype(np.int64), plan.query_lens)


_Places = dict[str, tuple[int, int, np.dtype[Any]]]
_DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}


def _lay_out(arrays: Mapping[str, np.ndarray]) -> tuple[_Places, int]:
    """Return where in one block each array begins and ends, with its dtype, and the bytes of all."""
    places: _Places = {}
    size = 0
    for name, array in arrays.items():
        places[name] = size, size + array.nbytes, array.dtype
        size += -(-array.nbytes // _ALIGNED) * _ALIGNED
    return places, size


def _write(block: np.ndarray, places: _Places, arrays: Mapping[str, np.ndarray]) -> None:
    """Put arrays, which may be shorter than planned, into their places of a block of bytes."""
    for name, array in arrays.items():
        begin, _, dtype = places[name]
        block[begin : begin + array.size * dtype.itemsize].view(dtype)[:] = array


def _views(block: Tensor, places: _Places) -> dict[str, Tensor]:
    """Return the tensors that lie in a block of bytes."""
    return {name: block[begin:end].view(_DTYPES[dtype]) for name, (begin, end, dtype) in places.items()}
