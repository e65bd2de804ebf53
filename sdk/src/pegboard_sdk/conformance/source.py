"""The suite of kind `source`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pegboard.errors import DataError
from pegboard.interfaces.source import IndexedSource, Source
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite

Row = Mapping[str, Any]


@standard
class SourceSuite(PluginSuite):
    """Rows are written by the test and read back through the source.

    rows: what is written; texts by default, since every kind of file can hold them.
    indexed: whether rows can be read in any order. fingerprinted: whether the source knows a hash of its content.
    """

    kind = "source"
    rows: ClassVar[Sequence[Row]] = tuple({"ask": f"é {n}, \\n", "answer": f"日 {n} 🎉"} for n in range(7))
    indexed: ClassVar[bool] = True
    fingerprinted: ClassVar[bool] = True

    def write(self, folder: Path, rows: Sequence[Row]) -> Mapping[str, Any]:
        """Write rows into an empty folder and return the options of a source that reads them, `path` among them."""
        raise NotImplementedError(f"{type(self).__name__} needs write()")

    def open(self, folder: Path, rows: Sequence[Row] | None = None) -> Source:
        """Return a source of rows that were written into a new folder."""
        folder.mkdir(parents=True)
        source: Source = self.create(**self.write(folder, self.rows if rows is None else rows))
        return source

    def test_rows(self, tmp_path: Path) -> None:
        """Rows come as they were written, counted from 0, and once more in the next pass."""
        source = self.open(tmp_path / "data")
        for _ in range(2):
            assert [(index, dict(row)) for index, row in source.rows()] == list(enumerate(map(dict, self.rows)))

    def test_continues(self, tmp_path: Path) -> None:
        """Reading from a row on gives the rest, also while another pass is under way."""
        source = self.open(tmp_path / "data")
        whole = list(source.rows())
        passing = source.rows()
        for start in range(len(whole) + 1):
            assert list(source.rows(start)) == whole[start:]
            assert next(passing, None) == (whole[start] if start < len(whole) else None)

    def test_any_order(self, tmp_path: Path) -> None:
        """An indexed source knows its length, and gives a row by its number."""
        self.needs("indexed", "rows are read in order")
        source = self.open(tmp_path / "data")
        assert isinstance(source, IndexedSource)
        assert len(source) == len(self.rows)
        for index in [0, *reversed(range(len(self.rows))), 0]:
            assert dict(source.row(index)) == dict(self.rows[index])

    def test_says_where_a_row_stands(self, tmp_path: Path) -> None:
        """Each row has a place of its own, in one line."""
        source = self.open(tmp_path / "data")
        places = [source.describe(index) for index, _ in source.rows()]
        assert all(place.strip() and "\n" not in place for place in places)
        assert len(set(places)) == len(places)

    def test_fingerprint(self, tmp_path: Path) -> None:
        """The hash is that of the content: the same in another place, another after a change."""
        self.needs("fingerprinted", "the content is not known")
        found = self.open(tmp_path / "a").fingerprint()
        assert found and found == self.open(tmp_path / "b").fingerprint()
        changed = [*self.rows[:-1], dict.fromkeys(self.rows[-1], "other")]
        assert found != self.open(tmp_path / "c", changed).fingerprint()
        assert found != self.open(tmp_path / "d", self.rows[:-1]).fingerprint()

    def test_what_is_not_there_is_named(self, tmp_path: Path) -> None:
        """A path that leads nowhere is a DataError that names it and says what to do."""
        options = self.write(tmp_path, self.rows)
        with pytest.raises(DataError) as caught:
            list(self.create(**{**options, "path": str(tmp_path / "nowhere-at-all")}).rows())
        assert "nowhere-at-all" in caught.value.message
        assert caught.value.fix
