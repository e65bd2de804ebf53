from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import DataError
from pegboard_datasets.delimited import CsvSource
from pegboard_datasets.options import CsvOptions

VALUE = st.text(st.sampled_from('ab,"\n é\u2028\x85\t'), max_size=6)


def source_of(path: Path, content: str | bytes, **options: Any) -> CsvSource:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return CsvSource(CsvOptions(path=str(path), **options))


@given(st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_values_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], end: str, marked: bool
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([("q", "a"), *rows])
    content = ("\ufeff" if marked else "") + text.getvalue()
    source = source_of(tmp_path_factory.getbasetemp() / "rows.csv", content)
    assert [(row["q"], row["a"]) for _, row in source.rows()] == rows
    assert [source.row(index) for index in range(len(rows))] == [row for _, row in source.rows()]


def test_rows_know_the_line_that_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    source = source_of(path, 'a,b\n\n1,"two\nlines"\n\n3,4')
    assert [dict(row) for _, row in source.rows()] == [{"a": "1", "b": "two\nlines"}, {"a": "3", "b": "4"}]
    assert [source.describe(index) for index in range(2)] == [f"{path}, line 3", f"{path}, line 6"]


def test_delimiters(tmp_path: Path) -> None:
    assert source_of(tmp_path / "rows.tsv", "a\tb\n1,2\t3").row(0) == {"a": "1,2", "b": "3"}
    assert source_of(tmp_path / "rows.csv", "a;b\n1,2;3", delimiter=";").row(0) == {"a": "1,2", "b": "3"}


def test_a_value_may_be_long(tmp_path: Path) -> None:
    assert source_of(tmp_path / "rows.csv", "a\n" + "x" * 200_000).row(0) == {"a": "x" * 200_000}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n3\n", "line 3: 1 values, the first line names 2 fields: a, b"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 values"),
        ('a,b\n1,2\n"3,4\n5', "line 3: unexpected end of data"),
        ('a,b\n1,2\n"3"x,4\n', "line 3: .* expected after"),
        ("a,a\n1,2\n3,4\n", "line 1 names a twice"),
        (b"a,b\n1,2\n\xff,4\n", "line 3: byte 1 is not UTF-8"),
        (b"\xff,b\n1,2\n3,4\n", "line 1: byte 1 is not UTF-8"),
        ("a,b\n", "the data set is empty"),
        ("", "the data set is empty"),
        ("\ufeff", "the data set is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        source_of(tmp_path / "rows.csv", content).row(1)
