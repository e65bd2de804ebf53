"""Which rows of a batch use which slot, arranged once a pass so that every layer adds to them in few products."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# From so many rows on, neighbours of one slot are worth a product of their own; copying them together with others would cost more.
_LONG = 16
# A slot with so many times the rows of the next smaller one is kept apart: slots of a block are padded to the longest.
_UNEVEN = 4
SETS = 2
"""Sets of slots whose weights are kept side by side."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows start … stop - 1 of a batch, all of one slot."""

    start: int
    stop: int
    slot: int


@dataclass(frozen=True, slots=True)
class Block:
    """Rows start … stop - 1, of several slots or none, as S stretches of M rows, one for each slot.

    slots: S of them, in order, some of which may have no row. gather: [S * M] int64, the row, counted from `start`, that stands at
    each place; `stop - start` means a row of zeros. back: [stop - start] int64, the place of each row; a row that adds nothing has
    the place of a row of zeros. padded: whether any place is one.
    """

    start: int
    stop: int
    slots: tuple[int, ...]
    gather: Tensor
    back: Tensor
    padded: bool


Part = Run | Block


class SlotRows:
    """The slot of each row of a batch, -1 for none: made once a pass, and the same for all layers.

    host, device: [T] int64 there and where the model is; one of them is enough. arrange: makes parts. kept: what an implementation of
    the ops made of the rows.
    """

    def __init__(self, host: Tensor | None, device: Tensor | None, arrange: Callable[[np.ndarray], list[Part]]) -> None:
        self.kept: dict[Hashable, Any] = {}
        self._host, self._device = host, device
        self._arrange = arrange
        self._parts: list[Part] | None = None

    def __len__(self) -> int:
        rows = self._device if self._host is None else self._host
        assert rows is not None
        return len(rows)

    @property
    def parts(self) -> list[Part]:
        """The parts of the batch. Raises RuntimeError in work that is captured: it will serve other rows."""
        if self._parts is None:
            self._parts = self._arrange(self.host)
        return self._parts

    @property
    def host(self) -> np.ndarray:
        """The slots [T] int64 on the host. Raises RuntimeError in work that is captured."""
        if self._host is None:
            raise RuntimeError("which rows use which adapter is known to the device alone in captured work")
        return self._host.numpy()

    def on(self, device: torch.device) -> Tensor:
        """Return the slots [T] int64 on the device of the model."""
        if self._device is None or self._device.device != device:
            assert self._host is not None
            self._device = self._host.to(device, non_blocking=True)
        return self._device


class Arranger:
    """Makes the parts of one batch after another.

    Each set of slots has its weights side by side in a copy of its own: a block whose slots are most of those of an earlier block
    takes that set.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sets: list[tuple[int, ...]] = []

    def forget(self) -> None:
        """Begin anew: what is loaded has changed."""
        self._sets = []

    def arrange(self, rows: np.ndarray, loaded: Collection[int]) -> list[Part]:
        """Return the parts of a batch. rows: [T] slots; one that is not in `loaded` counts as none."""
        rows = np.where(np.isin(rows, list(loaded)), rows, -1)
        if not len(rows) or rows.max() < 0:
            return []
        starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
        stops = np.append(starts[1:], len(rows))
        parts: list[Part] = []
        last = 0
        for index in np.flatnonzero(stops - starts >= _LONG).tolist():
            start, stop = int(starts[index]), int(stops[index])
            parts += self._mixed(rows, last, start)
            if rows[start] >= 0:
                parts.append(Run(start, stop, int(rows[start])))
            last = stop
        return parts + self._mixed(rows, last, len(rows))

    def _mixed(self, rows: np.ndarray, start: int, stop: int) -> list[Part]:
        """Return the parts of a stretch in which slots alternate."""
        used = np.flatnonzero(rows[start:stop] >= 0)
        if not len(used):
            return []
        start, stop = start + int(used[0]), start + int(used[-1]) + 1
        values = rows[start:stop]
        slots, counts = np.unique(values[values >= 0], return_counts=True)
        if len(slots) == 1 and counts[0] == len(values):
            return [Run(start, stop, int(slots[0]))]
        order = counts.argsort(kind="stable")
        steps = np.flatnonzero(counts[order][1:] > _UNEVEN * counts[order][:-1]) + 1
        return [self._block(values, start, slots[group].tolist()) for group in np.split(order, steps)]

    def _block(self, values: np.ndarray, start: int, wanted: list[int]) -> Block:
        slots = self._set(wanted)
        places = np.full(int(max(values.max(), *slots)) + 1, -1)
        places[wanted] = np.searchsorted(slots, wanted)
        owners = np.where(values >= 0, places[values], -1)
        rows = np.flatnonzero(owners >= 0)
        rows = rows[owners[rows].argsort(kind="stable")]
        counts = np.bincount(owners[rows], minlength=len(slots))
        idle = len(rows) < len(values)
        width = int(counts.max())
        if idle and width * len(slots) == len(rows):
            width += 1
        within = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
        at = owners[rows] * width + within
        # Places that no row reads back may hold anything; only a row that adds nothing needs zeros to point to.
        gather = np.full(width * len(slots), len(values) if idle else 0)
        gather[at] = rows
        back = np.full(len(values), 0)
        if idle:
            back[:] = np.flatnonzero(gather == len(values))[0]
        back[rows] = at
        return Block(start, start + len(values), slots, self._tensor(gather), self._tensor(back), idle)

    def _set(self, wanted: list[int]) -> tuple[int, ...]:
        if len(wanted) == 1:
            return (wanted[0],)
        fits = (one for one in self._sets if set(wanted) <= set(one) and len(one) <= 2 * len(wanted))
        found = next(fits, tuple(sorted(wanted)))
        self._sets = [found, *(one for one in self._sets if one != found)][:SETS]
        return found

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self._device, non_blocking=True)
