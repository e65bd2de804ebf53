"""Opening a data file, and finding where its rows begin without holding them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

from pegboard.errors import DataError, nearest


def existing_file(path: str) -> Path:
    """Return the path of a data file. Raises DataError when there is none, naming a neighbour with a similar name."""
    found = Path(path).expanduser()
    if found.is_file():
        return found
    if found.is_dir():
        raise DataError(f"data.path is a folder: {path}", fix="name one file in it")
    siblings = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
    raise DataError(f"there is no data file {path}{nearest(found.name, siblings)}", fix="correct data.path")


def line_spans(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line) of a file."""
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield number, offset, line
            offset += len(line)


def non_empty_lines(path: Path) -> tuple[array[int], array[int]]:
    """Return byte offset and line number (from 1) of every line that is not blank: 16 bytes of memory a row."""
    offsets, numbers = array("Q"), array("Q")
    for number, offset, line in line_spans(path):
        if line.strip():
            offsets.append(offset)
            numbers.append(number)
    return offsets, numbers
