"""What the sampler remembers of the outputs, on its device: it learns its own tokens without the host, which may be a step ahead.

A slot of the running set gets a row of a table when it is reset and gives it back when it is released. Tables double when rows run
out. While a proposal is verified, a slot has several rows of logits, and those before the last depend on proposed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pegboard.ops import KernelTable
from pegboard_engine.sampling.ops import PROMPT

_NONE = -2
"""In a tail: no token stands there yet."""


class Rows:
    """Which row of a table each slot has."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self.size = 0

    def take(self, slot: int) -> int:
        """Return the slot's row, a free one where it has none; `size` tells how many there are."""
        if slot not in self._rows:
            if not self._free:
                size = max(2 * self.size, 4)
                self._free, self.size = list(range(size - 1, self.size - 1, -1)), size
            self._rows[slot] = self._free.pop()
        return self._rows[slot]

    def release(self, slot: int) -> None:
        """Take the slot's row back, if it has one."""
        if slot in self._rows:
            self._free.append(self._rows.pop(slot))

    def of(self, slots: np.ndarray) -> np.ndarray:
        """Return the rows [N] int64 of slots [N], which all have one."""
        return np.array([self._rows[slot] for slot in slots.tolist()], np.int64)


class Counts:
    """How often each id stands in a slot's output, and whether in its prompt: for penalties.

    counts: [rows, V] int32. listed: [rows, L] int64, ids among which are all that have a count; what has none does no harm there.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab = vocab_size
        self._rows = Rows()
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._listed = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._used = np.zeros(0, np.int64)

    def reset(self, slots: Sequence[int], prompts: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Begin anew with the ids of prompts and outputs."""
        rows = np.array([self._rows.take(slot) for slot in slots], np.int64)
        listed = [np.unique(np.concatenate(pair)) for pair in zip(prompts, outputs, strict=True)]
        self._grow(max(map(len, listed)))
        self._counts[self._index(rows)] = 0
        self._counts[self._places(rows, prompts)] = PROMPT
        at = self._places(rows, outputs)
        self._counts.index_put_(at, torch.ones_like(at[1], dtype=torch.int32), accumulate=True)
        self._used[rows] = [len(ids) for ids in listed]
        at = self._places(rows, listed)
        self._listed[at[0], self._index(np.concatenate([np.arange(len(ids)) for ids in listed]))] = at[1]

    def release(self, slot: int) -> None:
        """Forget a slot."""
        self._rows.release(slot)

    def append(self, slots: np.ndarray, ids: Tensor, count: Tensor | None) -> None:
        """Add tokens to outputs: the first count[i] of ids [N, P] for slots [N]; all where count is None."""
        rows = self._rows.of(slots)
        width = ids.shape[1]
        self._grow(int(self._used[rows].max()) + width)
        at = self._index(rows)[:, None].expand_as(ids)
        added = torch.ones_like(ids, dtype=torch.int32)
        if count is not None:
            added = (torch.arange(width, device=ids.device) < count[:, None]).int()
        self._counts.index_put_((at, ids), added, accumulate=True)
        full = self._used[rows] + width > self._vocab
        if full.any():
            self._list_all(rows[full])
            rows, ids = rows[~full], ids[torch.from_numpy(~full).to(ids.device)]
        self._listed[self._index(rows)[:, None], self._index(self._used[rows][:, None] + np.arange(width))] = ids
        self._used[rows] += width

    def penalise_(
        self,
        kernels: KernelTable,
        logits: Tensor,
        rows: Tensor,
        slots: np.ndarray,
        penalties: Tensor,
        ahead: Tensor | None,
    ) -> None:
        """Change the logits of `rows` [P] int64, which belong to slots [P], in place: op `penalise_`."""
        table = self._rows.of(slots)
        at = self._index(table)
        listed = self._listed[at, : int(self._used[table].max())]
        kernels.penalise_(logits, rows, self._counts, at, penalties, listed, ahead)

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self._counts.device)

    def _places(self, rows: np.ndarray, ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return pairs of a row and each of its ids."""
        return self._index(np.repeat(rows, [len(part) for part in ids])), self._index(np.concatenate(ids))

    def _list_all(self, rows: np.ndarray) -> None:
        """Once a list would be longer than the vocabulary it becomes the vocabulary."""
        every = torch.arange(self._vocab, device=self._counts.device)
        self._grow(self._vocab)
        self._listed[self._index(rows), : self._vocab] = every
        self._used[rows] = self._vocab

    def _grow(self, width: int) -> None:
        """Make room for all rows and for lists of `width` ids."""
        have, length = self._listed.shape
        if self._rows.size > have:
            self._counts = _padded(self._counts, self._rows.size, self._vocab, 0)
            self._used = np.concatenate([self._used, np.zeros(self._rows.size - have, np.int64)])
        if self._rows.size > have or width > length:
            width = length if width <= length else min(max(2 * length, width, 64), self._vocab)
            self._listed = _padded(self._listed, self._rows.size, width, 0)


class Tails:
    """The last ids of each output: for bad words of several tokens. [rows, L] int64, padded on the left."""

    def __init__(self, device: torch.device) -> None:
        self._rows = Rows()
        self._tails = torch.full((0, 0), _NONE, dtype=torch.int64, device=device)

    def reset(self, slot: int, output: np.ndarray, length: int) -> None:
        """Begin anew with an output, of which the last `length` ids will be asked for."""
        row = self._rows.take(slot)
        have, width = self._tails.shape
        if self._rows.size > have or length > width:
            longer = max(length, width)
            grown = torch.full((self._rows.size, longer), _NONE, dtype=torch.int64, device=self._tails.device)
            grown[:have, longer - width :] = self._tails
            self._tails = grown
        self._tails[row] = _NONE
        known = torch.from_numpy(output[-self._tails.shape[1] :].astype(np.int64)).to(self._tails.device)
        if len(known):
            self._tails[row, -len(known) :] = known

    def release(self, slot: int) -> None:
        """Forget a slot."""
        self._rows.release(slot)

    def append(self, slots: np.ndarray, ids: Tensor, count: Tensor | None) -> None:
        """Add tokens to outputs, as `Counts.append` does."""
        at = torch.from_numpy(self._rows.of(slots)).to(ids.device)
        width = self._tails.shape[1]
        longer = torch.cat([self._tails[at], ids], 1)
        if count is None:
            self._tails[at] = longer[:, -width:]
        else:
            self._tails[at] = longer.gather(1, torch.arange(width, device=ids.device) + count[:, None])

    def endings(self, slots: np.ndarray, ahead: Tensor | None, offset: Tensor | None) -> Tensor:
        """Return [P, L] int64, the last ids before each row.

        ahead: [P, K] proposed ids that precede the row, of which there are offset[i], the rest -1.
        """
        tails = self._tails[torch.from_numpy(self._rows.of(slots)).to(self._tails.device)]
        if ahead is None or offset is None:
            return tails
        return torch.cat([tails, ahead], 1).gather(
            1, torch.arange(tails.shape[1], device=tails.device) + offset[:, None]
        )


def _padded(table: Tensor, rows: int, width: int, fill: int) -> Tensor:
    """Return a larger table with the old one in its first rows and columns."""
    grown = torch.full((rows, width), fill, dtype=table.dtype, device=table.device)
    grown[: table.shape[0], : table.shape[1]] = table
    return grown
