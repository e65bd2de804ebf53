"""Rows from a file with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pegboard.errors import DataError
from pegboard.interfaces.source import IndexedSource
from pegboard_datasets.files import existing_file, non_empty_lines
from pegboard_datasets.options import JsonlOptions


class JsonlSource(IndexedSource):
    """Reads rows where they stand in the file; only their offsets are kept in memory. Raises DataError when there are none."""

    def __init__(self, options: JsonlOptions) -> None:
        self._path = existing_file(options.path)
        self._offsets, self._lines = non_empty_lines(self._path)
        if not self._offsets:
            raise DataError(f"the data set is empty: {self._path} has no rows", fix="write one JSON object a line")

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> Mapping[str, Any]:
        """Read row `index`."""
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            return self._parse(index, file.readline())

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on."""
        with self._path.open("rb") as file:
            for index in range(start, len(self)):
                file.seek(self._offsets[index])
                yield index, self._parse(index, file.readline())

    def describe(self, index: int) -> str:
        """Return the file and the line of a row."""
        return f"{self._path}, line {self._lines[index]}"

    def _parse(self, index: int, line: bytes) -> Mapping[str, Any]:
        try:
            row = json.loads(line.decode("utf-8-sig" if index == 0 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.describe(index)}: byte {error.start + 1} is not UTF-8", fix="save the file as UTF-8"
            ) from None
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{self.describe(index)}: not valid JSON: {reason}", fix="each line is one JSON object"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{self.describe(index)}: a JSON object was expected, found {_kind(row)}",
                fix="each line is one JSON object",
            )
        return row


def _kind(value: object) -> str:
    names = {
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
