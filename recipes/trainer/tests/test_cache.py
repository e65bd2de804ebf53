from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import ConfigError
from pegboard.types import Row
from pegboard_trainer.cache import PENDING, TokenCache, cache_path

PLAIN = st.text(max_size=3) | st.integers() | st.booleans() | st.floats(allow_nan=False) | st.none()


@st.composite
def rows(draw: st.DrawFn) -> Row:
    mask = draw(st.lists(st.booleans(), min_size=1, max_size=12))
    ids = draw(st.lists(st.integers(0, 200_000), min_size=len(mask), max_size=len(mask)))
    extras = draw(st.dictionaries(st.text(max_size=3), PLAIN, max_size=2))
    logps = draw(st.lists(st.floats(-9, 0), min_size=len(mask), max_size=len(mask)))
    return Row(ids, mask, extras, draw(st.sampled_from(["", "chosen"])), draw(st.sampled_from([{}, {"logp": logps}])))


@settings(max_examples=20)
@given(st.lists(st.lists(rows(), min_size=1, max_size=2).map(tuple), max_size=3))
def test_what_was_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, examples: list[tuple[Row, ...]]) -> None:
    path = tmp_path_factory.mktemp("cache") / "a.sqlite"
    cache = TokenCache(path)
    assert cache.get(7) is None
    cache.put(7, examples)
    assert cache.get(7) == examples
    assert TokenCache(path, writes=False).get(7) is None
    cache.flush()
    assert TokenCache(path, writes=False).get(7) == examples


def test_rows_are_written_many_at_once_and_by_one_process(tmp_path: Path) -> None:
    row = (Row([1, 2], [False, True]),)
    writer, reader = TokenCache(tmp_path / "c" / "a.sqlite"), TokenCache(tmp_path / "c" / "a.sqlite", writes=False)
    for index in range(PENDING):
        writer.put(index, [row])
    assert reader.get(PENDING - 1) == [row]
    reader.put(PENDING, [row])
    reader.flush()
    assert writer.get(PENDING) is None


def test_what_json_cannot_say_is_not_kept(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "a.sqlite")
    cache.put(0, [(Row([1], [True], {"when": object()}),)])
    assert cache.get(0) is None


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"not a data base, but long enough to be looked at" * 20)
    with pytest.raises(ConfigError, match=r"a\.sqlite cannot be used as a cache"):
        TokenCache(tmp_path / "a.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as a cache"):
        TokenCache(tmp_path / "file" / "a.sqlite")


def test_the_name_follows_all_that_decides_the_ids(tiny_tokenizer: Any) -> None:
    class Known:
        def __init__(self, content: str | None) -> None:
            self.fingerprint = lambda: content

    class Other(type(tiny_tokenizer)):  # type: ignore[misc]
        def files(self) -> dict[str, bytes]:
            return {"tokenizer.json": b"{}"}

    def name(content: str | None, choice: Any, tokenizer: Any) -> Path | None:
        return cache_path("folder", Known(content), choice, tokenizer)  # type: ignore[arg-type]

    base = name("a", {"use": "text"}, tiny_tokenizer)
    assert base == name("a", {"use": "text"}, tiny_tokenizer)
    others = {
        name("b", {"use": "text"}, tiny_tokenizer),
        name("a", {"use": "chat"}, tiny_tokenizer),
        name("a", {"use": "text"}, Other()),
    }
    assert len({base, *others}) == 4
    assert name(None, {"use": "text"}, tiny_tokenizer) is None
