from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pegboard.errors import DataError
from pegboard_parquet.options import ParquetOptions
from pegboard_parquet.source import ParquetSource

ROWS = [
    {
        "id": number,
        "messages": [{"role": "user", "content": f"é {number}"}, {"role": "assistant", "content": None}],
        "score": None if number % 3 else number / 2,
    }
    for number in range(700)
]


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(ROWS).schema), path, **options)
    return path


def source_of(path: Path, **options: Any) -> ParquetSource:
    return ParquetSource(ParquetOptions(path=str(path), **options))


def test_rows_are_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS, row_group_size=300)
    source = source_of(path)
    assert len(source) == 700
    assert [row for _, row in source.rows()] == ROWS
    assert [source.row(index) for index in (699, 0, 256, 255, 300)] == [ROWS[i] for i in (699, 0, 256, 255, 300)]
    assert source.describe(1) == f"{path}, row 2"


def test_a_folder_and_its_columns(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "b.parquet", ROWS[2:4])
    write(tmp_path / "parts" / "a.parquet", ROWS[:2])
    write(tmp_path / "parts" / "none.parquet", [])
    source = source_of(tmp_path / "parts", columns=["id"])
    assert [dict(row) for _, row in source.rows()] == [{"id": number} for number in range(4)]
    assert source.fingerprint() == source_of(tmp_path / "parts").fingerprint()


def test_the_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    source = source_of(write(tmp_path / "rows.parquet", ROWS))
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    del source
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not at all PAR1")
    with pytest.raises(DataError, match=r"bad\.parquet is not a Parquet file that can be read"):
        source_of(tmp_path / "bad.parquet")
    good = write(tmp_path / "rows.parquet", ROWS)
    with pytest.raises(
        DataError, match=r"has no column 'scor' \(did you mean 'score'\?\); it has: id, messages, score"
    ):
        source_of(good, columns=["scor"])
    with pytest.raises(DataError, match="the data set is empty"):
        source_of(write(tmp_path / "none.parquet", []))
    (tmp_path / "rows.csv").write_text("a\n1\n")
    with pytest.raises(DataError) as caught:
        source_of(tmp_path / "rows.csv")
    assert caught.value.fix == "set data.use=csv"


def test_a_value_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    _, offsets, data = pa.array([b"good", b"b\xffd"]).buffers()
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(2, offsets, data)}), path)
    source = source_of(path)
    assert source.row(0) == {"text": "good"}
    with pytest.raises(DataError, match=r"rows\.parquet, row 2: "):
        source.row(1)
