"""The vocabulary of a file: tokens, their kinds, and the ids with a role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pegboard.errors import ModelError
from pegboard_gguf.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens[i] is the text of id i, kinds[i] its kind (one of the constants above); roles maps `bos_token` … to
    an id.
    """

    tokens: list[str]
    kinds: list[int]
    roles: dict[str, int]

    @property
    def ids(self) -> dict[str, int]:
        """Token -> id, without the entries that only pad the embedding to a round size."""
        return {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if not (kind == UNUSED and token.startswith("[PAD"))
        }

    @property
    def added(self) -> list[dict[str, Any]]:
        """The `added_tokens` of a tokenizer.json: control tokens, and those that are never cut."""
        special = set(self.roles.values())
        return [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if token and (kind in (CONTROL, USER_DEFINED) or i in special)
        ]

    def text(self, role: str) -> str | None:
        """Return the token that has a role, or None."""
        return self.tokens[self.roles[role]] if role in self.roles else None


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Read tokens, kinds and roles. Raises ModelError when they do not fit together."""
    tokens = metadata.texts("tokenizer.ggml.tokens")
    if tokens is None or not len(tokens):
        raise ModelError(
            f"{metadata.where} has no tokenizer: tokenizer.ggml.tokens is absent",
            fix="use a file that holds its tokenizer",
        )
    kinds = metadata.numbers("tokenizer.ggml.token_type")
    if kinds is not None and len(kinds) != len(tokens):
        raise ModelError(
            f"{metadata.where} has {len(tokens)} tokens but {len(kinds)} entries in tokenizer.ggml.token_type"
        )
    roles: dict[str, int] = {}
    for role, key in _ROLES.items():
        found = metadata.integer(f"tokenizer.ggml.{key}")
        if found is not None:
            if not 0 <= found < len(tokens):
                raise ModelError(
                    f"{metadata.where}: tokenizer.ggml.{key} is {found}, outside the vocabulary of {len(tokens)}"
                )
            roles[role] = found
    return Vocabulary(list(tokens), [NORMAL] * len(tokens) if kinds is None else [int(k) for k in kinds], roles)
