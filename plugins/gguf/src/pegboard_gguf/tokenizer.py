"""Tokenizer files: metadata to tokenizer.json, tokenizer_config.json and chat_template.jinja.

`gpt2` tokenizers are byte-level BPE with the file's merges; `llama` ones are SentencePiece BPE, see `sentencepiece.py`.
The JSON is what the `tokenizers` library reads (https://huggingface.co/docs/tokenizers).
"""

from __future__ import annotations

import json
from typing import Any

from pegboard.errors import ModelError
from pegboard_gguf.container import Container
from pegboard_gguf.metadata import Metadata, StringArray
from pegboard_gguf.pretokenizers import byte_level, pre_tokenizer
from pegboard_gguf.sentencepiece import sentencepiece_parts
from pegboard_gguf.vocabulary import Vocabulary, read_vocabulary


def tokenizer_files(container: Container) -> dict[str, bytes]:
    """Return the files by name. Raises ModelError when the file's tokenizer is missing, damaged or of an unknown
    kind.
    """
    metadata = container.metadata
    vocabulary = read_vocabulary(metadata)
    kind = metadata.text("tokenizer.ggml.model")
    if kind == "gpt2":
        parts, bos = _byte_level_parts(metadata, vocabulary)
    elif kind == "llama":
        parts, bos = sentencepiece_parts(metadata, vocabulary), True
    else:
        raise ModelError(f"{container.where}: the tokenizer model is {kind!r}", fix="gpt2 and llama are read")
    add_bos = _or(metadata.flag("tokenizer.ggml.add_bos_token"), bos) and "bos_token" in vocabulary.roles
    add_eos = _or(metadata.flag("tokenizer.ggml.add_eos_token"), False) and "eos_token" in vocabulary.roles
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added,
        **parts,
        "post_processor": _markers(vocabulary, add_bos, add_eos, parts["post_processor"]),
    }
    files = {
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(_tokenizer_config(container, vocabulary, add_bos, add_eos), indent=2),
    }
    template = metadata.text("tokenizer.chat_template")
    if template:
        files["chat_template.jinja"] = template.encode()
    return files


def _byte_level_parts(metadata: Metadata, vocabulary: Vocabulary) -> tuple[dict[str, Any], bool]:
    """Return the parts of a tokenizer.json, and whether sequences begin with bos unless the file says otherwise."""
    cut = pre_tokenizer(metadata.text("tokenizer.ggml.pre"), metadata.where)
    ids = vocabulary.ids
    merges = metadata.texts("tokenizer.ggml.merges")
    if merges is None:
        raise ModelError(f"{metadata.where} has a gpt2 tokenizer without tokenizer.ggml.merges", fix="convert it again")
    parts = {
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": cut.steps,
        "post_processor": byte_level(use_regex=True),
        "decoder": byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut.ignore_merges,
            "vocab": ids,
            "merges": _split_merges(merges, ids, metadata.where),
        },
    }
    return parts, cut.bos


def _split_merges(merges: StringArray, ids: dict[str, int], where: str) -> list[list[str]]:
    """Return the merges as pairs. Raises ModelError for one whose parts or result are no tokens."""
    pairs = []
    for index, merge in enumerate(merges):
        left, separator, right = merge.partition(" ")
        if not separator or left not in ids or right not in ids or left + right not in ids:
            raise ModelError(
                f"{where}: merge {index} is {merge[:40]!r}, whose parts or result are not in the vocabulary"
            )
        pairs.append([left, right])
    return pairs


def _markers(vocabulary: Vocabulary, bos: bool, eos: bool, inner: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the post-processor: `inner`, then bos and eos around each sequence."""
    if not bos and not eos:
        return inner

    def mark(role: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": vocabulary.text(role), "type_id": 0}}

    before = [mark("bos_token")] if bos else []
    after = [mark("eos_token")] if eos else []
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    pair = [*single, *before, {"Sequence": {"id": "B", "type_id": 0}}, *after]
    used = [role for role, wanted in (("bos_token", bos), ("eos_token", eos)) if wanted]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {
            str(vocabulary.text(role)): {
                "id": vocabulary.text(role),
                "ids": [vocabulary.roles[role]],
                "tokens": [vocabulary.text(role)],
            }
            for role in used
        },
    }
    return {"type": "Sequence", "processors": [inner, template]} if inner else template


def _tokenizer_config(container: Container, vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> dict[str, Any]:
    metadata = container.metadata
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.integer(f"{metadata.text('general.architecture')}.context_length") or int(1e30),
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in vocabulary.added
        },
    }
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if role in vocabulary.roles:
            config[role] = vocabulary.text(role)
    template = metadata.text("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    return config


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _json(value: object, indent: int | None = None) -> bytes:
    return json.dumps(
        value, ensure_ascii=False, indent=indent, separators=(",", ": ") if indent else (",", ":")
    ).encode()
