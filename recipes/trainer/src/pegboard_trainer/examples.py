"""From raw rows to examples, in an order that depends on nothing but the seed and the position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pegboard.errors import DataError
from pegboard.interfaces.source import IndexedSource, Source
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.interfaces.transform import Transform
from pegboard.types import Example, Row

Key = tuple[int, int, int]
"""Where an example comes from: epoch, position in that epoch, number within the row."""


@dataclass(slots=True)
class Counts:
    """What became of the examples so far. tokens: of the examples kept, after truncation."""

    examples: int = 0
    tokens: int = 0
    truncated: int = 0
    dropped: int = 0

    def line(self) -> str:
        """Return the counts for people."""
        return f"{self.examples:,} examples, {self.tokens:,} tokens, {self.truncated:,} cut to length, {self.dropped:,} left out"


@dataclass(frozen=True, slots=True)
class Limits:
    """The longest sequence in tokens, what becomes of longer ones, and how many sequences of that length a batch holds."""

    length: int
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    sequences: int | None = None


def epoch_order(indices: Tensor, epoch: int, seed: int, *, shuffle: bool) -> Tensor:
    """Return the row indices of an epoch in their order: a permutation that is the same for the same seed and epoch."""
    if not shuffle:
        return indices
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) & (2**63 - 1))
    return indices[torch.randperm(len(indices), generator=generator)]


def split_rows(count: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of training and validation rows, each in file order. held_out: a share below 1, or a number of rows.

    Raises DataError when either part would be empty.
    """
    wanted = round(count * held_out) if held_out < 1 else int(held_out)
    if wanted < 1 or wanted >= count:
        raise DataError(
            f"data.validation={held_out:g} of {count} rows leaves one part empty",
            fix="choose a share between, or a path",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[wanted:].sort().values, order[:wanted].sort().values


@dataclass(slots=True)
class Examples:
    """Endless examples, epoch after epoch. `next_key` is where the next one comes from; setting it continues from there."""

    source: Source
    transform: Transform
    tokenizer: Tokenizer
    limits: Limits
    seed: int = 0
    shuffle: bool = True
    indices: Tensor | None = None
    epochs: float | None = None
    counts: Counts = field(default_factory=Counts)
    next_key: Key = (0, 0, 0)

    def __iter__(self) -> Iterator[tuple[Key, Example]]:
        """Yield (key, example) from `next_key` until `epochs` are over. Raises DataError when the first epoch holds no example."""
        while self.epochs is None or self.next_key[0] < self.epochs:
            epoch, position, sub = self.next_key
            found = (epoch, position, sub) != (0, 0, 0)
            for at, index, raw in self._epoch(epoch, position):
                # A row that a restored position lies in was counted before.
                examples = self._examples(index, raw, count=not sub)
                for number, example in list(enumerate(examples))[sub:]:
                    self.next_key = (epoch, at, number + 1)
                    found = True
                    yield (epoch, at, number), example
                sub = 0
                self.next_key = (epoch, at + 1, 0)
            if not found:
                raise DataError(
                    f"no row of the data can be used: {self.counts.line()}",
                    fix="check batch.length, batch.overlong and data.format",
                )
            self.next_key = (epoch + 1, 0, 0)

    @property
    def rows(self) -> int | None:
        """The number of rows of an epoch, None where the source does not know it."""
        return None if self.indices is None else len(self.indices)

    def at(self, key: Key) -> Example:
        """Return one example again; counts are not touched."""
        epoch, position, sub = key
        _, index, raw = next(iter(self._epoch(epoch, position)))
        return self._examples(index, raw, count=False)[sub]

    def describe(self, key: Key) -> str:
        """Return where an example stands in its file."""
        return self.source.describe(self._index(key[0], key[1]))

    def _index(self, epoch: int, position: int) -> int:
        return (
            position
            if self.indices is None
            else int(epoch_order(self.indices, epoch, self.seed, shuffle=self.shuffle)[position])
        )

    def _epoch(self, epoch: int, start: int) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
        """Yield (position, row index, raw row) of an epoch, the last one cut where `epochs` is not whole."""
        if self.indices is None or not isinstance(self.source, IndexedSource):
            for index, raw in self.source.rows(start):
                yield index, index, raw
            return
        order = epoch_order(self.indices, epoch, self.seed, shuffle=self.shuffle)
        stop = len(order)
        if self.epochs is not None and epoch + 1 > self.epochs:
            stop = round(len(order) * (self.epochs - epoch))
        for position in range(start, stop):
            index = int(order[position])
            yield position, index, self.source.row(index)

    def _examples(self, index: int, raw: Mapping[str, Any], *, count: bool = True) -> Sequence[Example]:
        counts = self.counts if count else Counts()
        try:
            made = self.transform(raw, self.tokenizer)
            fitted = [fit((example,) if isinstance(example, Row) else example, self.limits, counts) for example in made]
        except DataError as error:
            raise DataError(f"{self.source.describe(index)}: {error.message}", fix=error.fix) from error
        return [example for example in fitted if example is not None]


def fit(example: Example, limits: Limits, counts: Counts) -> Example | None:
    """Return the example with no sequence above the longest length, or None when something in it cannot be learned then.

    Raises DataError for one that is too long where that is an error, and for more sequences than a batch is sure to hold.
    """
    if limits.sequences is not None and len(example) > limits.sequences:
        raise DataError(
            f"an example of {len(example)} sequences does not fit into a batch of batch.size={limits.sequences}",
            fix=f"set batch.size={len(example)} or more (with a smaller batch.length, if memory is short)",
        )
    longest = max(len(row.input_ids) for row in example)
    if longest > limits.length:
        if limits.overlong == "error":
            raise DataError(
                f"{longest} tokens, batch.length is {limits.length}",
                fix="raise batch.length, or set batch.overlong to truncate or drop",
            )
        if limits.overlong == "drop":
            counts.dropped += 1
            return None
        example = tuple(_cut(row, limits.length) for row in example)
        counts.truncated += 1
    if not all(row.part == "prompt" or any(row.mask[1:]) for row in example):
        counts.dropped += 1
        return None
    counts.examples += 1
    counts.tokens += sum(len(row.input_ids) for row in example)
    return example


def _cut(row: Row, length: int) -> Row:
    per_token = {name: values[:length] for name, values in row.per_token.items()}
    return replace(row, input_ids=row.input_ids[:length], mask=row.mask[:length], per_token=per_token)
