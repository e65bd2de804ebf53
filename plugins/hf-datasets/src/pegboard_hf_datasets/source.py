"""Rows of data sets that the datasets library loads. It runs no code of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]

from pegboard.errors import DataError
from pegboard.interfaces.source import IndexedSource, Source
from pegboard_hf_datasets.options import HubOptions


class HubSource(IndexedSource):
    """A data set that is downloaded, converted once and mapped into memory."""

    def __init__(self, options: HubOptions) -> None:
        self._where, self._data = _load(options, streaming=False)

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Mapping[str, Any]:
        """Return row `index`."""
        return dict(self._data[index])

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on."""
        for index in range(start, len(self)):
            yield index, self.row(index)

    def describe(self, index: int) -> str:
        """Return the data set, its split and the row, from 0 as the hub's viewer counts."""
        return f"{self._where}, row {index}"

    def fingerprint(self) -> str | None:
        """Return the library's own hash of what the rows were made from."""
        return getattr(self._data, "_fingerprint", None)


class HubStream(Source):
    """A data set that is downloaded while it is read: it begins at once, is read in order, and is neither shuffled nor split."""

    def __init__(self, options: HubOptions) -> None:
        self._where, self._data = _load(options, streaming=True)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on; those before it are passed over without being decoded."""
        for index, row in enumerate(self._data.skip(start) if start else self._data, start):
            yield index, dict(row)

    def describe(self, index: int) -> str:
        """Return the data set, its split and the row, from 0."""
        return f"{self._where}, row {index}"


def _load(options: HubOptions, *, streaming: bool) -> tuple[str, Any]:
    path, _, split = options.path.partition("@")
    split = split or options.split
    where = f"{path} ({split})"
    found = Path(path).expanduser()
    try:
        data = datasets.load_dataset(
            str(found) if found.exists() else path,
            options.name,
            split=split,
            revision=options.revision,
            cache_dir=options.cache,
            streaming=streaming,
        )
    except Exception as error:  # the library, its readers and the network raise what they like
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"the data set {where} cannot be loaded: {reason[0]}",
            fix="correct data.path, data.name or data.split; a private one needs `hf auth login`",
        ) from error
    return where, data
