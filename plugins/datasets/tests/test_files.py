"""Which files a path names, and reading them as one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pegboard.errors import DataError
from pegboard_datasets.jsonl import JsonlSource
from pegboard_datasets.options import JsonlOptions


def write(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({"n": n}) + "\n" for n in numbers).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def source_of(path: Path | str) -> JsonlSource:
    return JsonlSource(JsonlOptions(path=str(path)))


def numbers(source: JsonlSource) -> list[int]:
    return [row["n"] for _, row in source.rows()]


def test_a_folder_is_all_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", 3)
    write(tmp_path / "a" / "x.jsonl", 1, 2)
    write(tmp_path / "c.ndjson", 4)
    write(tmp_path / "empty.jsonl")
    write(tmp_path / "other.txt", 9)
    write(tmp_path / ".hidden.jsonl", 9)
    source = source_of(tmp_path)
    assert numbers(source) == [1, 2, 3, 4]
    assert [source.row(index)["n"] for index in (3, 0, 2)] == [4, 1, 3]
    assert next(iter(source.rows(2))) == (2, {"n": 3})
    assert source.describe(1) == f"{tmp_path}/a/x.jsonl, line 2"
    assert numbers(source_of(f"{tmp_path}/*.jsonl")) == [3]
    assert numbers(source_of(f"{tmp_path}/**/*.jsonl")) == [1, 2, 3]


def test_a_packed_file_is_read_as_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", 5, 6, 7)
    source = source_of(path)
    assert numbers(source) == [5, 6, 7]
    assert source.row(2) == {"n": 7}
    assert source.describe(2) == f"{path}, line 3"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz cannot be unpacked"):
        source_of(path)


def test_the_unpacked_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    source = source_of(write(tmp_path / "rows.jsonl.gz", 5))
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    del source
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said", "fix"),
    [
        ("rows.csv", r"rows\.csv ends in \.csv, this source reads \.jsonl, \.ndjson", "data.use=csv"),
        ("rows.parquet", "ends in .parquet", "data.use=parquet"),
        ("*.jsonl", "no file matches", "data.path"),
        ("folder", "holds no file that ends in .jsonl, .ndjson", "data.use"),
    ],
)
def test_a_path_that_names_nothing_to_read(tmp_path: Path, name: str, said: str, fix: str) -> None:
    for other in ("rows.csv", "rows.parquet", "folder/rows.csv"):
        write(tmp_path / other, 1)
    with pytest.raises(DataError, match=said) as caught:
        source_of(tmp_path / name)
    assert fix in str(caught.value.fix)


def test_the_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a.jsonl", 1, 2), write(tmp_path / "b.jsonl", 1, 2)
    assert source_of(first).fingerprint() == source_of(again).fingerprint()
    assert source_of(first).fingerprint() != source_of(write(tmp_path / "b.jsonl", 1, 3)).fingerprint()
    assert source_of(tmp_path).fingerprint() != source_of(first).fingerprint()
