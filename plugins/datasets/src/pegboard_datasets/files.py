"""Opening data files, and finding where their rows begin without holding them."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import shutil
import tempfile
import weakref
import zlib
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pegboard.errors import DataError, nearest
from pegboard.interfaces.source import IndexedSource

KNOWN = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
}
"""Which source reads files of which name."""


def data_files(path: str, suffixes: Sequence[str]) -> list[Path]:
    """Return the files that `path` names: one file, all of a folder that end in `suffixes`, or those that match a pattern.

    Those of a folder, its sub-folders included, and of a pattern come in the order of their names. Raises DataError when there are
    none.
    """
    found = Path(path).expanduser()
    if found.is_file():
        _check_suffix(found, suffixes)
        return [found]
    if found.is_dir():
        inside = sorted(p for p in found.rglob("[!.]*") if p.is_file() and _suffix(p) in suffixes)
        if not inside:
            raise DataError(
                f"the folder {path} holds no file that ends in {', '.join(suffixes)}",
                fix="correct data.path or data.use",
            )
        return inside
    if glob.has_magic(path):
        matching = sorted(p for p in map(Path, glob.glob(str(found), recursive=True)) if p.is_file())
        if not matching:
            raise DataError(f"no file matches {path}", fix="correct data.path")
        return matching
    siblings = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
    raise DataError(f"there is no data file {path}{nearest(found.name, siblings)}", fix="correct data.path")


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file whose name says that another source reads it. Other names are not judged."""
    suffix = _suffix(path)
    if suffix in KNOWN and suffix not in suffixes:
        raise DataError(
            f"{path} ends in {suffix}, this source reads {', '.join(suffixes)}", fix=f"set data.use={KNOWN[suffix]}"
        )


class OneFile(Protocol):
    """The rows of one file, from 0."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Mapping[str, Any]: ...

    def describe(self, index: int) -> str: ...


class FileSource(IndexedSource):
    """Rows of one file, or of several one after the other.

    open: makes the source of one file. Raises DataError when none of them has a row.
    """

    def __init__(self, path: str, suffixes: Sequence[str], open: Callable[[Path], OneFile], hint: str) -> None:
        self._paths = data_files(path, suffixes)
        self._files = [open(file) for file in self._paths]
        self._ends = list(accumulate(len(file) for file in self._files))
        if not self._ends[-1]:
            raise DataError(f"the data set is empty: {path} has no rows", fix=hint)

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Mapping[str, Any]:
        """Read row `index`."""
        file, inside = self._find(index)
        return file.row(inside)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on."""
        for index in range(start, len(self)):
            yield index, self.row(index)

    def describe(self, index: int) -> str:
        """Return the file and the line of a row."""
        file, inside = self._find(index)
        return file.describe(inside)

    def fingerprint(self) -> str:
        """Return a hash of the contents of all files, in their order."""
        total = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def _find(self, index: int) -> tuple[OneFile, int]:
        number = bisect_right(self._ends, index)
        return self._files[number], index - (self._ends[number - 1] if number else 0)


class FileRows(ABC):
    """Rows that stand in one file, of which only the offsets are held: 16 bytes a row.

    A file that ends in .gz is unpacked into a temporary one, since nothing inside it can be found otherwise.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content = path
        if path.suffix == ".gz":
            self._content = _unpacked(path)
            weakref.finalize(self, self._content.unlink, missing_ok=True)
        self._size = self._content.stat().st_size
        self._offsets, self._lines = array("Q"), array("Q")
        with self._content.open("rb") as file:
            self._scan(file)

    def __len__(self) -> int:
        return len(self._offsets)

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """Read row `index`. Raises DataError naming the line."""

    def describe(self, index: int) -> str:
        """Return the file and the line of a row."""
        return f"{self.path}, line {self._lines[index]}"

    def _scan(self, file: BinaryIO) -> None:
        """Note where each row begins. By default a row is a line that is not blank."""
        offset = 0
        for number, line in enumerate(file, 1):
            if not line.isspace():
                self._offsets.append(offset)
                self._lines.append(number)
            offset += len(line)

    def _text(self, index: int) -> str:
        """Return the text of a row, blank lines after it included."""
        start, stop = self._offsets[index], self._stop(index)
        # Opened for each read: a folder may hold more files than a process may have open.
        with self._content.open("rb") as file:
            file.seek(start)
            return decode(file.read(stop - start), self.describe(index), start)

    def _stop(self, index: int) -> int:
        return self._offsets[index + 1] if index + 1 < len(self) else self._size


def decode(data: bytes, where: str, start: int = 0) -> str:
    """Return bytes of a file as text; a byte-order mark is left out at its `start`, 0. Raises DataError naming the place."""
    try:
        return data.decode("utf-8" if start else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8", fix="save the file as UTF-8") from None


def _unpacked(path: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="pegboard-", suffix=path.stem)
    try:
        with gzip.open(path) as packed, open(descriptor, "wb") as target:
            shutil.copyfileobj(packed, target, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        os.unlink(name)
        raise DataError(f"{path} cannot be unpacked: {error}", fix="copy it again") from error
    return Path(name)
