from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import DataError
from pegboard_datasets.jsonl import JsonlSource, JsonSource
from pegboard_datasets.options import JsonlOptions, JsonOptions

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def source_of(path: Path, content: str | bytes) -> JsonlSource:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return JsonlSource(JsonlOptions(path=str(path)))


@given(st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none(), max_size=3), min_size=1, max_size=8), st.data())
@settings(max_examples=50, deadline=None)
def test_rows_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    ends = [data.draw(st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"])) for _ in rows]
    lines = [json.dumps(row, ensure_ascii=False) + end for row, end in zip(rows, ends, strict=True)]
    source = source_of(tmp_path_factory.getbasetemp() / "rows.jsonl", "".join(lines))
    assert len(source) == len(rows)
    assert [source.row(index) for index in range(len(rows))] == rows
    start = data.draw(st.integers(0, len(rows)))
    assert list(source.rows(start)) == list(enumerate(rows))[start:]


def test_rows_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    source = source_of(path, '\n{"a": 1}\n\n\n{"a": 2}')
    assert [source.describe(index) for index in range(2)] == [f"{path}, line 2", f"{path}, line 5"]


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert source_of(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\n').row(0) == {"a": 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1,}', "not valid JSON: .* at column 9"),
        (b'{"a": ', "not valid JSON"),
        (b"[1, 2]", "a JSON object was expected, found a list"),
        (b'"text"', "found a string"),
        (b"7", "found a number"),
        (b"null", "found null"),
        (b"true", "found true or false"),
        (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
        (b'{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    source = source_of(path, b'{"a": 1}\n' * 999 + line)
    assert source.row(998) == {"a": 1}
    for read in (lambda: source.row(999), lambda: list(source.rows(990))):
        with pytest.raises(DataError, match=f"rows.jsonl, line 1000: .*{said}"):
            read()


def test_a_file_that_is_empty_or_not_there(tmp_path: Path) -> None:
    for content in ("", "\n \n"):
        with pytest.raises(DataError, match="the data set is empty"):
            source_of(tmp_path / "rows.jsonl", content)
    with pytest.raises(DataError, match=r"there is no data file .*row\.jsonl \(did you mean 'rows\.jsonl'\?\)"):
        JsonlSource(JsonlOptions(path=str(tmp_path / "row.jsonl")))


def test_a_list_in_place_of_lines_is_read_by_another_source(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        source_of(tmp_path / "rows", '[{"a": 1}]').row(0)
    assert "data.use=json" in str(caught.value.fix)


def json_source(path: Path, content: str | bytes, **options: Any) -> JsonSource:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return JsonSource(JsonOptions(path=str(path), **options))


def test_a_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    source = json_source(path, '\ufeff[{"a": 1}, {"a": 2}]')
    assert list(source.rows(1)) == [(1, {"a": 2})]
    assert (len(source), source.row(0), source.describe(1)) == (2, {"a": 1}, f"{path}, item 2")
    inner = json_source(path, '{"version": 1, "data": [{"a": 3}]}', field="data")
    assert inner.row(0) == {"a": 3}
    assert inner.fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('{"a": 1}', {}, "a list was expected, found an object"),
        ('{"a": 1}', {"field": "b"}, "a list was expected in field 'b', found null"),
        ("[]", {}, "has no rows"),
        ('[{"a": 1},\n {"a" 2}]', {}, "not valid JSON: .* at line 2, column 7"),
        ("[1]", {}, "item 1: a JSON object was expected, found a number"),
        (b"[\xff]", {}, "byte 2 is not UTF-8"),
    ],
)
def test_a_bad_list_is_described(tmp_path: Path, content: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"rows.json.*{said}"):
        json_source(tmp_path / "rows.json", content, **options).row(0)
