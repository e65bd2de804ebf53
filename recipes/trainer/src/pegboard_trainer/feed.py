"""Raw rows in the order of training: of one source, of several as if they were one, or of several mixed by weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pegboard.errors import ConfigError, DataError
from pegboard.interfaces.source import IndexedSource, Source
from pegboard.interfaces.transform import Transform
from pegboard.types import Example, Row
from pegboard_trainer.cache import TokenCache
from pegboard_trainer.order import Orders, spread

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer

Place = tuple[int, int]
"""Which part of the data, and which row of its source."""

Load = Callable[[], Mapping[str, Any]]
"""Reads a row, which need not be done where what was made of it is kept."""


@dataclass(frozen=True, slots=True)
class Part:
    """A source and what makes examples of its rows.

    indices: the rows that are used, [R] int64; None for all of a source that can only be read in order. weight: its share of a mix.
    cache: keeps what was made; None for nothing.
    """

    source: Source
    transform: Transform
    indices: Tensor | None = None
    weight: float | None = None
    cache: TokenCache | None = None

    def loader(self, index: int) -> Load:
        """Return what reads one row of a source that has `indices`."""
        return partial(cast(IndexedSource, self.source).row, index)

    def examples(self, index: int, load: Load, tokenizer: Tokenizer) -> list[Example]:
        """Return the examples of a row. Raises DataError naming the row and what is wrong with it."""
        made = None if self.cache is None else self.cache.get(index)
        if made is not None:
            return made
        row = load()
        try:
            made = [(e,) if isinstance(e, Row) else e for e in self.transform(row, tokenizer)]
        except DataError as error:
            raise DataError(f"{self.source.describe(index)}: {error.message}", fix=error.fix) from error
        if self.cache is not None:
            self.cache.put(index, made)
        return made


class Feed(ABC):
    """Rows by epoch and position, in an order that depends on nothing but the seed.

    rows: positions of an epoch; None where it is not known before the end.
    """

    rows: int | None = None

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    @abstractmethod
    def read(self, epoch: int, start: int) -> Iterator[tuple[int, Place, Load]]:
        """Yield (position, place, what reads the row) of an epoch from position `start` on."""

    @abstractmethod
    def place(self, epoch: int, position: int) -> Place:
        """Return where a row comes from."""

    def describe(self, place: Place) -> str:
        """Return where a row stands in its file."""
        part, index = place
        return self.parts[part].source.describe(index)

    def flush(self) -> None:
        """Write what the caches of the parts hold back."""
        for part in self.parts:
            if part.cache is not None:
                part.cache.flush()


class InOrder(Feed):
    """One source that can only be read in order."""

    def read(self, epoch: int, start: int) -> Iterator[tuple[int, Place, Load]]:
        for index, row in self.parts[0].source.rows(start):
            yield index, (0, index), partial(_same, row)

    def place(self, epoch: int, position: int) -> Place:
        return 0, position


class Joined(Feed):
    """Sources whose rows can be read in any order, as if they were one; every row comes once in an epoch."""

    def __init__(self, parts: Sequence[Part], indices: Sequence[Tensor], seed: int, *, shuffle: bool) -> None:
        super().__init__(parts)
        self._indices = indices
        self._ends = list(accumulate(map(len, indices)))
        self.rows = self._ends[-1]
        self._orders = Orders(torch.arange(self.rows), seed, shuffle=shuffle)

    def read(self, epoch: int, start: int) -> Iterator[tuple[int, Place, Load]]:
        for position in range(start, self._ends[-1]):
            part, index = place = self.place(epoch, position)
            yield position, place, self.parts[part].loader(index)

    def place(self, epoch: int, position: int) -> Place:
        number = int(self._orders.of(epoch)[position])
        part = next(i for i, end in enumerate(self._ends) if number < end)
        return part, int(self._indices[part][number - (self._ends[part - 1] if part else 0)])


class Mixed(Feed):
    """Each source has its share of the rows, evenly spread; one that is used up begins again, in a new order.

    An epoch is as many rows as all sources have together.
    """

    def __init__(self, parts: Sequence[Part], seed: int, *, shuffle: bool) -> None:
        super().__init__(parts)
        counts = [len(part.indices) for part in parts if part.indices is not None]
        self.rows = sum(counts) if len(counts) == len(parts) else None
        self._slots = spread([part.weight or 0.0 for part in parts])
        self._before = [self._slots[:at].count(part) for at, part in enumerate(self._slots)]
        self._readers = [
            _Stream(part)
            if part.indices is None
            else _Indexed(part, part.indices, seed + 7919 * number, shuffle=shuffle)
            for number, part in enumerate(parts)
        ]

    def read(self, epoch: int, start: int) -> Iterator[tuple[int, Place, Load]]:
        position = start
        while self.rows is None or position < self.rows:
            part, taken = self._turn(epoch, position)
            index, load = self._readers[part].after(taken)
            yield position, (part, index), load
            position += 1

    def place(self, epoch: int, position: int) -> Place:
        part, taken = self._turn(epoch, position)
        return part, self._readers[part].after(taken)[0]

    def _turn(self, epoch: int, position: int) -> tuple[int, int]:
        """Return whose turn it is, and how many rows that part has given before."""
        cycle, at = divmod(epoch * (self.rows or 0) + position, len(self._slots))
        part = self._slots[at]
        return part, cycle * self._slots.count(part) + self._before[at]


class _Indexed:
    """The rows of a part of a mix, epoch after epoch."""

    def __init__(self, part: Part, indices: Tensor, seed: int, *, shuffle: bool) -> None:
        self._part, self._orders = part, Orders(indices, seed, shuffle=shuffle)

    def after(self, taken: int) -> tuple[int, Load]:
        """Return the index of the row that comes after `taken` others, epochs counted together, and what reads it."""
        index = self._orders.at(taken)
        return index, self._part.loader(index)


class _Stream:
    """The same of a source that can only be read in order."""

    def __init__(self, part: Part) -> None:
        self._source = part.source
        self._rows: Iterator[tuple[int, Mapping[str, Any]]] = iter(())
        self._next = 0

    def after(self, taken: int) -> tuple[int, Load]:
        """Return the index of the row that comes after `taken` others, passes counted together, and what reads it."""
        follows = taken == self._next and taken > 0
        if not follows:
            self._rows = iter(self._source.rows(taken))
        found = next(self._rows, None)
        if found is None:
            start = 0 if follows else taken % max(sum(1 for _ in self._source.rows()), 1)
            self._rows = iter(self._source.rows(start))
            found = next(self._rows, None)
        if found is None:
            raise DataError("a source of data.mix has no rows", fix="leave it out")
        self._next = taken + 1
        index, row = found
        return index, partial(_same, row)


def _same(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row


def make_feed(parts: Sequence[Part], seed: int, *, shuffle: bool) -> Feed:
    """Return the rows of one source or of several. Raises ConfigError for sources that cannot be mixed as asked."""
    weighted = [part.weight is not None for part in parts]
    if all(weighted):
        return Mixed(parts, seed, shuffle=shuffle)
    if any(weighted):
        raise ConfigError("only some sources of data.mix have a weight", fix="give every one a weight, or none")
    indices = [part.indices for part in parts if part.indices is not None]
    if len(indices) == len(parts):
        return Joined(parts, indices, seed, shuffle=shuffle)
    if len(parts) == 1:
        return InOrder(parts)
    raise ConfigError(
        "a source of data.mix can only be read in order: how many rows it has is not known",
        fix="give every source a weight",
    )
