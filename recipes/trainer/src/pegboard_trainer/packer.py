"""Examples to batches: first fit into a window of open batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pegboard.types import Batch, Row
from pegboard_trainer.examples import Examples, Key

IGNORE = -100


@dataclass(slots=True)
class Bin:
    """A batch that is being filled."""

    keys: list[Key] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    tokens: int = 0

    def add(self, key: Key, row: Row) -> None:
        """Append an example."""
        self.keys.append(key)
        self.rows.append(row)
        self.tokens += len(row.input_ids)


@dataclass(slots=True)
class Packer:
    """Fills batches of at most `capacity` tokens and `limit` examples (None: as many as fit).

    An example goes into the first of the open batches that has room. When none has and `window` are open, the fullest (the oldest
    of equals) is closed. Examples are never split, and the order of everything depends on the input alone.
    """

    capacity: int
    limit: int | None = None
    window: int = 8
    open: list[Bin] = field(default_factory=list)

    def add(self, key: Key, row: Row) -> Bin | None:
        """Place an example; return the batch that had to be closed for it, or that it filled."""
        size = len(row.input_ids)
        if size > self.capacity:
            raise ValueError(f"an example of {size} tokens does not fit into a batch of {self.capacity}")
        for bin in self.open:
            if bin.tokens + size <= self.capacity:
                bin.add(key, row)
                return self._close(bin) if self._full(bin) else None
        closed = self._close(max(self.open, key=lambda b: b.tokens)) if len(self.open) >= self.window else None
        fresh = Bin()
        fresh.add(key, row)
        self.open.append(fresh)
        # A second batch cannot be returned; one that is full already is closed by the next call that finds no room.
        return closed if closed is not None else (self._close(fresh) if self._full(fresh) else None)

    def flush(self) -> Bin | None:
        """Close and return the oldest open batch, or None."""
        return self._close(self.open[0]) if self.open else None

    def _full(self, bin: Bin) -> bool:
        return bin.tokens == self.capacity or (self.limit is not None and len(bin.rows) >= self.limit)

    def _close(self, bin: Bin) -> Bin:
        # By identity: two bins may compare equal.
        self.open = [b for b in self.open if b is not bin]
        return bin


def collate(rows: Iterable[Row]) -> Batch:
    """Lay examples end to end as a Batch: positions restart, targets are shifted by one, and no target crosses a boundary."""
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    extras: dict[str, Any] = {}
    for row in rows:
        ids += row.input_ids
        positions += range(len(row.input_ids))
        shifted = zip(row.input_ids[1:], row.mask[1:], strict=True)
        targets += [token if learned else IGNORE for token, learned in shifted]
        targets.append(IGNORE)
        lengths.append(len(row.input_ids))
        for name, value in row.extras.items():
            extras.setdefault(name, []).append(value)
    counted = [t for t, target in enumerate(targets) if target != IGNORE]
    return Batch(
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(positions, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        lengths,
        torch.tensor(counted, dtype=torch.int64),
        extras,
    )


class Batches:
    """Batches of the packed examples. `state` after a batch, given to `restore`, continues with exactly the next one."""

    def __init__(self, examples: Examples, packer: Packer) -> None:
        self.examples = examples
        self._packer = packer
        self._iterator: Iterator[tuple[Key, Row]] | None = None

    def __iter__(self) -> Iterator[tuple[list[Key], Batch]]:
        return self

    def __next__(self) -> tuple[list[Key], Batch]:
        """Return the keys of the examples in the next batch, and the batch."""
        bin = self.next_bin()
        return bin.keys, collate(bin.rows)

    def next_bin(self) -> Bin:
        """Return the next batch before it becomes tensors. Raises StopIteration when all epochs are over."""
        if self._iterator is None:
            self._iterator = iter(self.examples)
        for key, row in self._iterator:
            closed = self._packer.add(key, row)
            if closed is not None:
                return closed
        last = self._packer.flush()
        if last is None:
            raise StopIteration
        return last

    def state(self) -> dict[str, Any]:
        """Return the position as JSON values: the next row and the keys of the examples in open batches."""
        counts = self.examples.counts
        return {
            "next": list(self.examples.next_key),
            "open": [[list(key) for key in bin.keys] for bin in self._packer.open],
            "counts": [counts.examples, counts.tokens, counts.truncated, counts.dropped],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; open batches are read from the source again."""
        epoch, position, sub = state["next"]
        self.examples.next_key = (epoch, position, sub)
        self._packer.open = []
        for keys in state["open"]:
            bin = Bin()
            for key in keys:
                bin.add(tuple(key), self.examples.at(tuple(key)))
            self._packer.open.append(bin)
        counts = self.examples.counts
        counts.examples, counts.tokens, counts.truncated, counts.dropped = state["counts"]
        self._iterator = None


def count_batches(batches: Batches) -> int:
    """Return how many batches there are; reads and tokenizes everything once."""
    count = 0
    try:
        while True:
            batches.next_bin()
            count += 1
    except StopIteration:
        return count
