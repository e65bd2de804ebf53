"""Rows in memory, and a tokenizer that is not asked anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from pegboard.errors import DataError
from pegboard.interfaces.source import IndexedSource, Source
from pegboard.interfaces.transform import Transform
from pegboard.types import Example, Row
from pegboard_trainer.examples import Examples, Limits
from pegboard_trainer.feed import Part, make_feed
from pegboard_trainer.packer import Batches, Packer


class Listed(IndexedSource):
    """Rows `{"lengths": [...]}`; each length is one example."""

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self._lengths = [list(row) for row in lengths]

    def __len__(self) -> int:
        return len(self._lengths)

    def row(self, index: int) -> Mapping[str, Any]:
        return {"index": index, "lengths": self._lengths[index]}

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for index in range(start, len(self)):
            yield index, self.row(index)

    def describe(self, index: int) -> str:
        return f"row {index}"


class Streamed(Source):
    """The same rows, readable in order only."""

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self._listed = Listed(lengths)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        return self._listed.rows(start)

    def describe(self, index: int) -> str:
        return self._listed.describe(index)


class Numbered(Transform):
    """Ids `1000 · row + number` of the example in its row; a negative length is a row that cannot be used."""

    def __call__(self, row: Mapping[str, Any], tokenizer: object) -> Sequence[Row]:
        if any(length < 0 for length in row["lengths"]):
            raise DataError("a negative length", fix="count again")
        return [
            Row([1000 * row["index"] + number] * length, [True] * length)
            for number, length in enumerate(row["lengths"])
        ]


class Neighboured(Numbered):
    """Adds to each example the first ids of all its neighbours."""

    def complete(self, example: Example, neighbours: Iterable[Example]) -> Sequence[Example]:
        ids = [row.input_ids[0] for (row,) in neighbours]
        return ((Row(ids, [True] * len(ids), part="neighbours"),),)


def make_examples(lengths: Sequence[Sequence[int]], *, streamed: bool = False, **options: Any) -> Examples:
    source: Source = Streamed(lengths) if streamed else Listed(lengths)
    indices = None if streamed else torch.arange(len(lengths))
    limits = options.pop("limits", Limits(10_000))
    feed = make_feed(
        [Part(source, options.pop("transform", None) or Numbered(), indices)],
        options.pop("seed", 0),
        shuffle=options.pop("shuffle", True),
    )
    return Examples(feed, None, limits, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def examples() -> Callable[..., Examples]:
    return make_examples


@pytest.fixture(scope="session")
def neighboured() -> Transform:
    return Neighboured()


@pytest.fixture(scope="session")
def batches() -> Callable[..., Batches]:
    def make(lengths: Sequence[Sequence[int]], packer: Packer, **options: Any) -> Batches:
        return Batches(make_examples(lengths, **options), packer)

    return make
