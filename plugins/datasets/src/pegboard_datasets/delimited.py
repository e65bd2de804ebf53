"""Rows from CSV and TSV files, whose first line names the fields."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pegboard.errors import DataError
from pegboard_datasets.files import FileRows, FileSource, decode
from pegboard_datasets.options import CsvOptions

LONGEST = 1 << 30
"""Characters of one field. The csv module's own limit, 128 Ki, is below what a document has."""


class CsvSource(FileSource):
    """Every value is text. Fields may be quoted and hold line breaks, as RFC 4180 says."""

    def __init__(self, options: CsvOptions) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
        super().__init__(
            options.path,
            (".csv", ".tsv"),
            partial(_Records, delimiter=options.delimiter),
            "write a line of field names and one line a row",
        )


class _Records(FileRows):
    """A record a row."""

    def __init__(self, path: Path, delimiter: str | None) -> None:
        tabs = path.name.removesuffix(".gz").endswith(".tsv")
        self._delimiter = delimiter or ("\t" if tabs else ",")
        self._fields: list[str] = []
        super().__init__(path)

    def row(self, index: int) -> Mapping[str, Any]:
        """Read row `index`. Raises DataError where it has more or fewer values than the first line has names."""
        values = self._values(self._text(index), self.describe(index))
        if len(values) != len(self._fields):
            raise DataError(
                f"{self.describe(index)}: {len(values)} values, the first line names {len(self._fields)} fields: "
                f"{', '.join(self._fields)}",
                fix="correct the line, quote values that hold the delimiter, or set data.delimiter",
            )
        return dict(zip(self._fields, values, strict=True))

    def _scan(self, file: BinaryIO) -> None:
        """Find where records begin. Bytes are read as Latin-1: every character is a byte, and delimiters are those of UTF-8."""
        line = offset = 0
        parts: list[bytes] = []

        def lines() -> Iterator[str]:
            for part in file:
                parts.append(part)
                yield part.decode("latin-1")

        reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise _refused(f"{self.path}, line {line + 1}", error) from None
            if values is None:
                return
            if values and not self._fields:
                where = f"{self.path}, line {line + 1}"
                self._fields = self._values(decode(b"".join(parts), where, offset), where)
                twice = {name for name in self._fields if self._fields.count(name) > 1}
                if twice:
                    raise DataError(f"{where} names {', '.join(sorted(twice))} twice", fix="rename one")
            elif values:
                self._offsets.append(offset)
                self._lines.append(line + 1)
            offset += sum(map(len, parts))
            line += len(parts)
            parts.clear()

    def _values(self, text: str, where: str) -> list[str]:
        """Return the values of the record that a text begins with."""
        # Only a line feed ends a line here, as when the file was scanned; a text has further characters that could.
        lines = io.StringIO(text, newline="\n")
        try:
            # Nothing is left of a line that is a byte-order mark alone.
            return next(csv.reader(lines, delimiter=self._delimiter, strict=True), [])
        except csv.Error as error:
            raise _refused(where, error) from None


def _refused(where: str, error: csv.Error) -> DataError:
    return DataError(f"{where}: {error}", fix='close the quote; a quote inside quotes is written ""')
