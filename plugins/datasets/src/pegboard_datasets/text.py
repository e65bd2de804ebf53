"""Rows cut from a file of plain text."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pegboard.errors import DataError
from pegboard.interfaces.source import IndexedSource
from pegboard_datasets.files import existing_file, line_spans
from pegboard_datasets.options import TextOptions


class TextSource(IndexedSource):
    """Cuts a text at empty lines, at every line, or only where a row grows too long; keeps offsets, not text."""

    def __init__(self, options: TextOptions) -> None:
        self._path = existing_file(options.path)
        self._starts, self._stops, self._lines = _cut(self._path, options.split, options.characters)
        if not self._starts:
            raise DataError(f"the data set is empty: {self._path} holds no text", fix="name a file with text")

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Mapping[str, Any]:
        """Read row `index`: {"text": …}."""
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            data = file.read(self._stops[index] - self._starts[index])
        try:
            text = data.decode("utf-8-sig" if index == 0 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{self.describe(index)}: not UTF-8", fix="save the file as UTF-8") from None
        return {"text": text.strip("\r\n")}

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on."""
        for index in range(start, len(self)):
            yield index, self.row(index)

    def describe(self, index: int) -> str:
        """Return the file and the first line of a row."""
        return f"{self._path}, from line {self._lines[index]}"


def _cut(path: Path, split: str, limit: int) -> tuple[array[int], array[int], array[int]]:
    """Return byte start, byte end and first line of every row that is not blank. A line longer than `limit` bytes is a row."""
    starts, stops, numbers = array("Q"), array("Q"), array("Q")
    open_row = False
    for number, offset, line in line_spans(path):
        blank = not line.strip()
        end = offset + len(line)
        if blank and split != "file":
            open_row = False
            continue
        full = open_row and end - starts[-1] > limit
        if not open_row or full or split == "line":
            if blank:
                open_row = False
                continue
            starts.append(offset)
            stops.append(end)
            numbers.append(number)
            open_row = True
        else:
            stops[-1] = end
    return starts, stops, numbers
