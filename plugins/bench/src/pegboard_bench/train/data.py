"""Random tokens as training data: batches of the same size for every step, with no file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from pegboard.interfaces.source import IndexedSource
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.interfaces.transform import Transform
from pegboard.types import Row


class SourceOptions(BaseModel):
    """path: of the section, without meaning here. rows: how many there are. seed: of their ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = ""
    rows: int = Field(default=1 << 20, ge=1)
    seed: int = 0


class RandomRows(IndexedSource):
    """Rows that hold nothing but a seed."""

    schema = SourceOptions

    def __init__(self, options: SourceOptions) -> None:
        self._options = options

    def __len__(self) -> int:
        return self._options.rows

    def row(self, index: int) -> Mapping[str, Any]:
        """Return row `index`."""
        return {"seed": f"{self._options.seed}/{index}"}

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on."""
        for index in range(start, len(self)):
            yield index, self.row(index)

    def describe(self, index: int) -> str:
        """Name a row."""
        return f"random row {index}"


class TransformOptions(BaseModel):
    """length: tokens of every example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: int = Field(ge=2)


class RandomTokens(Transform):
    """Makes ids of a row's seed, evenly over the vocabulary, all of which are to be learned."""

    schema = TransformOptions

    def __init__(self, options: TransformOptions) -> None:
        self._length = options.length

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return one example."""
        # Drawn by torch: while Python draws, the thread that gives work to the device waits.
        generator = torch.Generator().manual_seed(zlib.crc32(row["seed"].encode()))
        ids = torch.randint(tokenizer.vocab_size, (self._length,), generator=generator)
        return [Row(ids.tolist(), [True] * self._length)]
