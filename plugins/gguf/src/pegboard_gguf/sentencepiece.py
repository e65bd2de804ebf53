"""SentencePiece BPE (`tokenizer.ggml.model` = llama): merges recovered from the scores, unknown characters as bytes."""

from __future__ import annotations

import math
from typing import Any

from pegboard.errors import ModelError
from pegboard_gguf.metadata import Metadata
from pegboard_gguf.vocabulary import BYTE, CONTROL, UNKNOWN, Vocabulary

_SPACE = "\u2581"


def sentencepiece_parts(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the parts of a tokenizer.json. Raises ModelError when the scores are missing or do not fit the tokens."""
    scores = metadata.numbers("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        found = "no" if scores is None else len(scores)
        raise ModelError(
            f"{metadata.where} has {len(vocabulary.tokens)} tokens but {found} entries in tokenizer.ggml.scores"
        )
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix")
    prefix = True if prefix is None else prefix
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _unknown(vocabulary),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": BYTE in vocabulary.kinds,
            "ignore_merges": False,
            "vocab": vocabulary.ids,
            "merges": merges_of(vocabulary, [float(s) for s in scores]),
        },
    }


def merges_of(vocabulary: Vocabulary, scores: list[float]) -> list[list[str]]:
    """Return the merges, best first.

    SentencePiece joins the neighbours whose union has the highest score, so each way to cut a token in two tokens is a
    merge of that token's score; ways to cut one token are ranked by the ids of their parts.
    """
    ids = vocabulary.ids
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, kind, score in zip(vocabulary.tokens, vocabulary.kinds, scores, strict=True):
        if kind in (UNKNOWN, CONTROL, BYTE) or math.isnan(score):
            continue
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-score, left, right, token[:cut], token[cut:]))
    ranked.sort()
    return [[left, right] for *_, left, right in ranked]


def _unknown(vocabulary: Vocabulary) -> str | None:
    named = vocabulary.text("unk_token")
    if named is not None:
        return named
    return next((t for t, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == UNKNOWN), None)
