"""Streams: the pieces together are what decoding all ids at once gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard_tokenizers.loader import Loader
from pegboard_tokenizers.stream import BYTE_LETTERS, WholeStream
from pegboard_tokenizers.tokenizer import HfTokenizer

SORTS = (
    "byte_level",
    "byte_fallback",
    "metaspace_always",
    "metaspace_first",
    "metaspace_never",
    "word_piece",
    "word_ends",
    "words",
    "unusual",
)


@pytest.fixture(scope="session")
def load(make_files: Callable[..., dict[str, bytes]]) -> Callable[[str], HfTokenizer]:
    return cache(lambda sort: Loader().load(make_files(sort), {}))


def pieces(tokenizer: HfTokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special=skip_special)
    return [*(stream.push(index) for index in ids), stream.flush()]


def test_every_sort_is_here(sorts: Mapping[str, object]) -> None:
    assert set(sorts) == set(SORTS)


@pytest.mark.parametrize("sort", SORTS)
@given(data=st.data(), skip=st.booleans())
def test_any_ids_stream_to_their_text(
    load: Callable[[str], HfTokenizer], sort: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer = load(sort)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    assert "".join(pieces(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special=skip)


@given(st.lists(st.integers(3, 258), max_size=24))
def test_any_bytes_stream_to_their_text(load: Callable[[str], HfTokenizer], ids: list[int]) -> None:
    for sort in ("byte_level", "byte_fallback"):
        tokenizer = load(sort)
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.text(max_size=30))
def test_any_text_comes_back(load: Callable[[str], HfTokenizer], text: str) -> None:
    tokenizer = load("byte_level")
    assert "".join(pieces(tokenizer, tokenizer.encode(text), skip_special=False)) == text


def test_text_comes_as_soon_as_it_is_certain(load: Callable[[str], HfTokenizer]) -> None:
    tokenizer = load("byte_level")
    ids = tokenizer.encode("hello wörld \U0001f9be!")
    given_out = pieces(tokenizer, ids)
    for count in range(1, len(ids) + 1):
        assert "".join(given_out[:count]) == tokenizer.decode(ids[:count]).rstrip("\ufffd")


def test_a_run_of_byte_tokens_is_held_until_it_ends(load: Callable[[str], HfTokenizer]) -> None:
    tokenizer = load("byte_fallback")
    ids = tokenizer.encode("a 日o", special=False)
    assert pieces(tokenizer, ids) == ["a", " ", "", "", "", "日o", ""]
    broken = [*ids[:-2], *tokenizer.encode("a", special=False)]  # without the last byte
    assert "".join(pieces(tokenizer, broken)) == "a \ufffd\ufffd a" == tokenizer.decode(broken)


def test_a_cut_character_is_flushed(load: Callable[[str], HfTokenizer]) -> None:
    tokenizer = load("byte_level")
    ids = tokenizer.encode("\U0001f9be")
    assert len(ids) > 1
    assert pieces(tokenizer, ids[:-1]) == [""] * (len(ids) - 1) + ["\ufffd"]


def test_an_unknown_decoder_is_held_back_whole(load: Callable[[str], HfTokenizer]) -> None:
    stream = load("unusual").stream()
    assert isinstance(stream, WholeStream)
    assert [stream.push(1), stream.push(1), stream.flush(), stream.flush()] == ["", "", "A", ""]


def test_letters_stand_for_all_bytes() -> None:
    from tokenizers import pre_tokenizers

    assert sorted(BYTE_LETTERS.values()) == list(range(256))
    assert set(BYTE_LETTERS) == set(pre_tokenizers.ByteLevel.alphabet())
