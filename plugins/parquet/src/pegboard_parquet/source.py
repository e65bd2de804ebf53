"""Rows of Parquet files, found in any order."""

from __future__ import annotations

import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from pegboard.errors import DataError, nearest
from pegboard_datasets.files import FileSource
from pegboard_parquet.options import ParquetOptions

ROWS = 256
"""Rows of a record batch of the copy."""


class ParquetSource(FileSource):
    """Parquet files are compressed by columns, so that one row cannot be read alone: each is copied once, a row group at a time,
    into a temporary file that is mapped into memory, where a row is found at once.
    """

    def __init__(self, options: ParquetOptions) -> None:
        open = partial(_Table, columns=options.columns)
        super().__init__(options.path, (".parquet",), open, "name files with rows")


class _Table:
    """The rows of one file."""

    def __init__(self, path: Path, columns: list[str] | None) -> None:
        self._path = path
        try:
            copy = _copied(path, columns)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise DataError(f"{path} is not a Parquet file that can be read: {error}", fix="copy it again") from error
        weakref.finalize(self, copy.unlink, missing_ok=True)
        # The mapping outlives the name in the file system, which Windows alone refuses to remove before.
        reader = pa.ipc.open_file(pa.memory_map(str(copy)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> Mapping[str, Any]:
        """Return row `index` as Python values."""
        number = bisect_right(self._ends, index)
        inside = index - (self._ends[number - 1] if number else 0)
        try:
            (row,) = self._batches[number].slice(inside, 1).to_pylist()
        except (pa.ArrowException, ValueError) as error:  # such as a text that is no UTF-8
            raise DataError(f"{self.describe(index)}: {error}", fix="correct the row") from error
        return dict(row)

    def describe(self, index: int) -> str:
        """Return the file and the row, from 1."""
        return f"{self._path}, row {index + 1}"


def _copied(path: Path, columns: list[str] | None) -> Path:
    """Write the rows of a file into a temporary Arrow file and return its path."""
    with pq.ParquetFile(path, memory_map=True) as file:
        schema = file.schema_arrow
        for column in columns or ():
            if column not in schema.names:
                raise DataError(
                    f"{path} has no column {column!r}{nearest(column, schema.names)}; it has: {', '.join(schema.names)}",
                    fix="correct data.columns",
                )
        if columns is not None:
            schema = pa.schema([schema.field(column) for column in columns])
        descriptor, name = tempfile.mkstemp(prefix="pegboard-", suffix=".arrow")
        os.close(descriptor)
        try:
            with pa.OSFile(name, "wb") as target, pa.ipc.new_file(target, schema) as writer:
                for batch in file.iter_batches(ROWS, columns=columns):
                    writer.write_batch(batch.cast(schema))
        except BaseException:
            os.unlink(name)
            raise
    return Path(name)
