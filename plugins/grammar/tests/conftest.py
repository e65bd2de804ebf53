"""A tokenizer whose tokens are longer than bytes, some of them the same, some of them parts of characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pegboard_grammar.backend import LlguidanceBackend
from pegboard_grammar.options import Options
from pegboard_sdk.toys.tokenizer import TinyTokenizer

PIECES = (
    b'{"', b'": ', b'",', b"true", b"tr", b"ue}", b"12", b"a", b"ab", b"abc", b"bc", b"  ", b"\n", b'"', b'":"',
    "大".encode()[:2], "é".encode(), "大é".encode(), "é".encode()[1:] + b"x", b"yes", b"ye", b"s", b"ye",
)  # fmt: skip


class PieceTokenizer(TinyTokenizer):
    """The toy tokenizer and, from 260 on, `PIECES`."""

    vocab_size = 260 + len(PIECES)

    def token_bytes(self, token_id: int) -> bytes | None:
        return PIECES[token_id - 260] if 260 <= token_id < self.vocab_size else super().token_bytes(token_id)


@pytest.fixture(scope="session")
def pieces() -> PieceTokenizer:
    return PieceTokenizer()


@pytest.fixture(scope="session")
def make(pieces: PieceTokenizer) -> Iterator[Callable[..., LlguidanceBackend]]:
    def made(**options: object) -> LlguidanceBackend:
        backend = LlguidanceBackend(Options.model_validate(options))
        backend.load(pieces, pieces.vocab_size + 13)
        return backend

    yield made
