"""From a tokenizer to the tree of its tokens that llguidance walks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llguidance import LLTokenizer, TokenizerWrapper

from pegboard.errors import ConfigError

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tree: the tokens. size: width of the logits. ends: ids that end a text. end_only: the mask, as bytes, that allows those alone."""

    tree: LLTokenizer
    size: int
    ends: frozenset[int]
    end_only: bytes


class _Source:
    """A tokenizer in the shape that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Sequence[int]) -> None:
        self.eos_token_id = ends[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        self._tokenizer, self._size = tokenizer, size
        for token_id in range(size):
            text = None if token_id in ends or token_id >= tokenizer.vocab_size else tokenizer.token_bytes(token_id)
            if text is None and token_id < tokenizer.vocab_size:
                # By its name a grammar can ask for a special token: <|im_start|>.
                text = tokenizer.decode([token_id], skip_special=False).encode()
                if text or token_id in ends:
                    self.special_token_ids.append(token_id)
            self.tokens.append(text or b"")  # a token without bytes is never allowed

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return [token_id for token_id in self._tokenizer.encode(plain, special=False) if token_id < self._size]


def read_vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Return the vocabulary of `tokenizer` for logits of `size`; ids beyond the tokenizer's own are never allowed.

    Raises ConfigError when no id ends a text, DataError where the bytes of a token cannot be told.
    """
    ends = [token_id for token_id in tokenizer.eos_ids if token_id < size]
    if not ends:
        raise ConfigError(
            "the tokenizer names no id that ends a text, which an answer with a grammar must end with",
            fix="set eos_token_id in the model's generation_config.json",
        )
    tree = LLTokenizer(TokenizerWrapper(_Source(tokenizer, size, ends)), eos_token=ends)
    mask = bytearray((size + 31) // 32 * 4)
    for token_id in ends:
        mask[token_id // 8] |= 1 << token_id % 8
    return Vocabulary(tree, size, frozenset(ends), bytes(mask))
