"""From a model's files to a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import tokenizers

from pegboard.errors import ModelError
from pegboard.interfaces.tokenizer import TokenizerLoader
from pegboard_tokenizers.special import add_tokens, special_tokens
from pegboard_tokenizers.tokenizer import HfTokenizer

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
OWN_FILES = frozenset(
    {
        TOKENIZER,
        SETTINGS,
        TEMPLATE,
        "chat_template.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    }
)


class Loader(TokenizerLoader):
    """Reads what `save_pretrained` of Hugging Face's fast tokenizers writes."""

    def load(self, files: Mapping[str, bytes], config: Mapping[str, Any]) -> HfTokenizer:
        """Return the tokenizer of `files`; those that it reads are listed in the README.

        config: the model's config.json, whose bos_token_id, eos_token_id and pad_token_id count beside the tokenizer's own.
        Raises ModelError naming the missing or damaged file.
        """
        if TOKENIZER not in files:
            raise _missing(files)
        description = _json(files, TOKENIZER)
        settings = {**_json(files, "special_tokens_map.json"), **_json(files, SETTINGS)}
        core = _build(description)
        core.no_truncation()
        core.no_padding()
        add_tokens(core, settings, SETTINGS)
        generation = _json(files, "generation_config.json")
        texts = special_tokens(settings)
        ids = {role: core.token_to_id(text) for role, text in texts.items()}
        return HfTokenizer(
            core,
            decoder=description.get("decoder"),
            texts=texts,
            bos_id=_first(ids.get("bos_token"), config.get("bos_token_id")),
            eos_ids=_ids(ids.get("eos_token"), config.get("eos_token_id"), generation.get("eos_token_id")),
            pad_id=_first(ids.get("pad_token"), config.get("pad_token_id")),
            templates=_templates(files, settings),
            files={name: content for name, content in files.items() if _is_own(name)},
        )


def _build(description: dict[str, Any]) -> tokenizers.Tokenizer:
    _keep_offsets(description.get("post_processor"))
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(description, ensure_ascii=False))
    except Exception as error:  # the library raises bare exceptions
        raise ModelError(
            f"{TOKENIZER} is damaged or of a newer kind: {error}",
            fix="download the model again, or pip install --upgrade tokenizers",
        ) from error


def _keep_offsets(processor: object) -> None:
    """Let tokens keep the spaces that belong to them, so that no character is left out of a mask; ids do not change."""
    if isinstance(processor, dict):
        if "trim_offsets" in processor:
            processor["trim_offsets"] = False
        for inner in processor.get("processors") or []:
            _keep_offsets(inner)


def _templates(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return chat templates by name ("default", "tool_use" …), each with the name of the file that it is from."""
    found: dict[str, tuple[str, str]] = {}
    for name, value in (("chat_template.json", _json(files, "chat_template.json")), (SETTINGS, settings)):
        template = value.get("chat_template")
        if isinstance(template, str):
            found["default"] = template, name
        elif isinstance(template, list):
            entries = [entry for entry in template if isinstance(entry, Mapping)]
            found |= {str(e["name"]): (str(e["template"]), name) for e in entries if "name" in e and "template" in e}
    if TEMPLATE in files:
        found["default"] = _text(files, TEMPLATE), TEMPLATE
    for name in files:
        path = PurePosixPath(name)
        if path.parent.name == TEMPLATES and path.suffix == ".jinja":
            found[path.stem] = _text(files, name), name
    return found


def _is_own(name: str) -> bool:
    return name in OWN_FILES or PurePosixPath(name).parent.name == TEMPLATES


def _text(files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{name} is not UTF-8 text ({error.reason} at byte {error.start})", fix="download it again"
        ) from None


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one without the file."""
    if name not in files:
        return {}
    try:
        value = json.loads(_text(files, name))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON ({error})", fix="download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds a {type(value).__name__} instead of a JSON object", fix="download it again")
    return value


def _ids(*values: object) -> tuple[int, ...]:
    """Return distinct ids out of single ones, lists and absent ones, in order."""
    flat = [item for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]
    return tuple(dict.fromkeys(item for item in flat if type(item) is int and item >= 0))


def _first(*values: object) -> int | None:
    return next(iter(_ids(*values)), None)


def _missing(files: Iterable[str]) -> ModelError:
    other = sorted({"tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"} & set(files))
    if other:
        return ModelError(
            f"the model has {', '.join(other)} but no {TOKENIZER}",
            fix="write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    return ModelError(
        f"the model has no tokenizer: {TOKENIZER} is missing",
        fix=f"copy {TOKENIZER} and {SETTINGS} into it from the model that it was made from, or download it again",
    )
