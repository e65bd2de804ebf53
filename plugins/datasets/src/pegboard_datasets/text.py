"""Rows cut from a file of plain text."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pegboard_datasets.files import FileRows, FileSource
from pegboard_datasets.options import TextOptions


class TextSource(FileSource):
    """Cuts texts at empty lines, at every line, or only where a row grows too long; keeps offsets, not text."""

    def __init__(self, options: TextOptions) -> None:
        open = partial(_Pieces, split=options.split, limit=options.characters)
        super().__init__(options.path, (".txt", ".md"), open, "name a file with text")


class _Pieces(FileRows):
    """A piece of text a row."""

    def __init__(self, path: Path, split: str, limit: int) -> None:
        self._split, self._limit = split, limit
        self._stops = array("Q")
        super().__init__(path)

    def row(self, index: int) -> Mapping[str, Any]:
        """Read row `index`: {"text": …}."""
        return {"text": self._text(index).strip("\r\n")}

    def describe(self, index: int) -> str:
        """Return the file and the first line of a row."""
        return f"{self.path}, from line {self._lines[index]}"

    def _scan(self, file: BinaryIO) -> None:
        """Note where pieces that are not blank begin. A line longer than `limit` bytes is a piece."""
        open_piece = False
        offset = 0
        for number, line in enumerate(file, 1):
            start, offset = offset, offset + len(line)
            blank = not line.strip()
            if blank and self._split != "file":
                open_piece = False
                continue
            full = open_piece and offset - self._offsets[-1] > self._limit
            if open_piece and not full and self._split != "line":
                self._stops[-1] = offset
                continue
            open_piece = not blank
            if not blank:
                self._offsets.append(start)
                self._stops.append(offset)
                self._lines.append(number)

    def _stop(self, index: int) -> int:
        return self._stops[index]
