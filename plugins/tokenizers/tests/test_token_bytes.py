"""Bytes of single tokens: laid end to end they are the text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.errors import DataError
from pegboard_tokenizers.loader import Loader
from pegboard_tokenizers.tokenizer import HfTokenizer

PIECEWISE = ("byte_level", "byte_fallback", "metaspace_always", "metaspace_first", "metaspace_never")


@pytest.fixture(scope="session")
def load(make_files: Callable[..., dict[str, bytes]]) -> Callable[[str], HfTokenizer]:
    return cache(lambda sort: Loader().load(make_files(sort), {}))


@pytest.mark.parametrize("sort", PIECEWISE)
@given(data=st.data())
def test_bytes_laid_end_to_end_are_the_text(load: Callable[[str], HfTokenizer], sort: str, data: st.DataObject) -> None:
    tokenizer = load(sort)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=20))
    whole = b"".join(tokenizer.token_bytes(i) or b"" for i in ids)
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        # Streams differ in how many replacement characters a broken byte gives.
        return
    told = tokenizer.decode(ids)
    assert text == told or (text.startswith(" ") and text[1:] == told)


def test_special_tokens_and_padding_add_nothing(load: Callable[[str], HfTokenizer]) -> None:
    tokenizer = load("byte_level")
    by_text = {text: tokenizer.encode(text)[0] for text in ("<|im_end|>", "<tool>", "日本語")}
    assert tokenizer.token_bytes(by_text["<|im_end|>"]) is None
    assert tokenizer.token_bytes(by_text["<tool>"]) == b"<tool>"
    assert tokenizer.token_bytes(by_text["日本語"]) == "日本語".encode()
    assert tokenizer.token_bytes(tokenizer.vocab_size) is None


def test_every_byte_has_a_token(load: Callable[[str], HfTokenizer]) -> None:
    for sort in ("byte_level", "byte_fallback"):
        tokenizer = load(sort)
        found = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
        assert {bytes([byte]) for byte in range(256)} <= found


def test_words_keep_the_space_before_them(load: Callable[[str], HfTokenizer]) -> None:
    assert {load("metaspace_first").token_bytes(i) for i in range(4)} >= {b" the", b"hello"}


@pytest.mark.parametrize("sort", ["word_piece", "word_ends", "words", "unusual"])
def test_a_decoder_that_looks_at_other_tokens_is_refused(load: Callable[[str], HfTokenizer], sort: str) -> None:
    with pytest.raises(DataError, match="looks at other tokens"):
        load(sort).token_bytes(1)
