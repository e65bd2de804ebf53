from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import DataError
from pegboard_datasets.options import TextOptions
from pegboard_datasets.text import TextSource

BOOK = "one\ntwo\n\n\nthree\n\nfour\nfive\nsix\n"


def source_of(path: Path, content: str | bytes, **options: Any) -> TextSource:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextSource(TextOptions(path=str(path), **options))


def texts(source: TextSource) -> list[str]:
    return [row["text"] for _, row in source.rows()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["one\ntwo", "three", "four\nfive\nsix"]),
        ({"split": "line"}, ["one", "two", "three", "four", "five", "six"]),
        ({"split": "file"}, [BOOK.strip("\n")]),
        ({"split": "file", "characters": 10}, ["one\ntwo\n\n".strip("\n"), "three\n", "four\nfive", "six"]),
        ({"characters": 9}, ["one\ntwo", "three", "four", "five\nsix"]),
        ({"characters": 1}, ["one", "two", "three", "four", "five", "six"]),
    ],
)
def test_where_a_text_is_cut(tmp_path: Path, options: dict[str, Any], expected: list[str]) -> None:
    assert texts(source_of(tmp_path / "book.txt", BOOK, **options)) == [text.strip("\n") for text in expected]


@given(
    st.lists(st.text(st.sampled_from("ab é日\n"), max_size=6), max_size=12),
    st.integers(1, 20),
    st.sampled_from(["paragraph", "line", "file"]),
)
@settings(max_examples=60, deadline=None)
def test_no_character_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], limit: int, split: str
) -> None:
    text = "\n".join(parts)
    path = tmp_path_factory.getbasetemp() / "book.txt"
    if not text.strip():
        return
    source = source_of(path, text, split=split, characters=limit)
    assert "".join("".join(texts(source)).split()) == "".join(text.split())
    assert [source.row(index) for index in range(len(source))] == [row for _, row in source.rows()]


def test_rows_know_their_lines(tmp_path: Path) -> None:
    source = source_of(tmp_path / "book.txt", BOOK)
    assert [source.describe(index).rpartition(", ")[2] for index in range(3)] == [
        "from line 1",
        "from line 5",
        "from line 7",
    ]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    source = source_of(tmp_path / "book.txt", b"\xef\xbb\xbfgood\n\nb\xffd\n")
    assert source.row(0) == {"text": "good"}
    with pytest.raises(DataError, match=r"book\.txt, from line 3: byte 2 is not UTF-8"):
        source.row(1)


def test_an_empty_file(tmp_path: Path) -> None:
    for split in ("paragraph", "line", "file"):
        with pytest.raises(DataError, match="the data set is empty"):
            source_of(tmp_path / "book.txt", "\n \n", split=split)
