"""Rows from files of JSON: an object a line, or one list of objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pegboard.errors import DataError
from pegboard.interfaces.source import IndexedSource
from pegboard_datasets.files import FileRows, FileSource, data_files, decode
from pegboard_datasets.options import JsonlOptions, JsonOptions


class JsonlSource(FileSource):
    """Reads rows where they stand in the file; only their offsets are kept in memory. Raises DataError when there are none."""

    def __init__(self, options: JsonlOptions) -> None:
        super().__init__(options.path, (".jsonl", ".ndjson"), _Lines, "write one JSON object a line")


class _Lines(FileRows):
    """A line a row."""

    def row(self, index: int) -> Mapping[str, Any]:
        return _object(self._text(index).rstrip(), self.describe(index), "each line is one JSON object")


class JsonSource(IndexedSource):
    """One list of objects, which is held in memory."""

    def __init__(self, options: JsonOptions) -> None:
        (self._path,) = data_files(options.path, (".json",))[:1]
        self._data = self._path.read_bytes()
        rows = _parse(decode(self._data, str(self._path)), str(self._path), "the file is one list of objects")
        if options.field is not None:
            rows = rows.get(options.field) if isinstance(rows, dict) else None
        if not isinstance(rows, list):
            where = "" if options.field is None else f" in field {options.field!r}"
            raise DataError(
                f"{self._path}: a list was expected{where}, found {_kind(rows)}",
                fix="set data.field to the key of the list, or data.use=jsonl for an object a line",
            )
        if not rows:
            raise DataError(f"the data set is empty: {self._path} has no rows", fix="write a list of objects")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        """Return item `index`."""
        return _checked(self._rows[index], self.describe(index), "each item is one JSON object")

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on."""
        for index in range(start, len(self)):
            yield index, self.row(index)

    def describe(self, index: int) -> str:
        """Return the file and the item, from 1."""
        return f"{self._path}, item {index + 1}"

    def fingerprint(self) -> str:
        """Return a hash of the file's content."""
        return hashlib.sha256(self._data).hexdigest()


def _parse(text: str, where: str, fix: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(f"{where}: not valid JSON: {error.msg} at {line}column {error.colno}", fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}", fix=fix) from None


def _object(text: str, where: str, fix: str) -> Mapping[str, Any]:
    if text.lstrip().startswith("["):
        fix += "; a file that is one list of objects is read by data.use=json"
    return _checked(_parse(text, where, fix), where, fix)


def _checked(row: object, where: str, fix: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object was expected, found {_kind(row)}", fix=fix)
    return row


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
