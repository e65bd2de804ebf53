"""Special and added tokens, read from the files around tokenizer.json as Hugging Face reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from pegboard.errors import ModelError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each role ("bos_token" …) that the settings name."""
    texts = {role: token_text(settings.get(role)) for role in ROLES}
    return {role: text for role, text in texts.items() if text is not None}


def token_text(value: object) -> str | None:
    """Return the text of a token written as text or as a mapping with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def add_tokens(tokenizer: Tokenizer, settings: Mapping[str, Any], where: str) -> None:
    """Add the tokens that the settings name and tokenizer.json lacks, and take over their flags.

    Raises ModelError when a token cannot get the id that the settings give it.
    """
    known = tokenizer.get_added_tokens_decoder()
    declared = settings.get("added_tokens_decoder")
    wanted = sorted(declared.items(), key=lambda item: _id_of(item[0], where)) if isinstance(declared, Mapping) else []
    for key, value in wanted:
        token, index = _added_token(value, key, where), _id_of(key, where)
        if repr(known.get(index)) != repr(token):
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        found = tokenizer.token_to_id(token.content)
        if found != index:
            raise ModelError(
                f"{where} gives the token {token.content!r} the id {index}, tokenizer.json {found}",
                fix="the two files must belong to one model: download it again",
            )
    named = list(special_tokens(settings).values())
    named += [text for key in LISTS for text in _texts(settings.get(key))]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([text for text in dict.fromkeys(named) if text not in added])


def _texts(value: object) -> list[str]:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else []
    return [text for text in map(token_text, items) if text is not None]


def _id_of(key: object, where: str) -> int:
    try:
        return int(str(key))
    except ValueError:
        raise ModelError(f"{where}: added_tokens_decoder has the key {key!r}, which is no token id") from None


def _added_token(value: object, key: object, where: str) -> AddedToken:
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return AddedToken(value["content"], **{flag: bool(value[flag]) for flag in FLAGS if flag in value})
    raise ModelError(f"{where}: added_tokens_decoder describes token {key} as {value!r}; it needs a `content`")
