"""A tiny Hugging Face folder, for what starts from a path: random weights, a byte-level tokenizer, a chat template."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pegboard.build import find_family
from pegboard.plugins.load import Registry
from pegboard.weights import write_model

SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
    }
)
"""Sizes of a config.json, to which a test adds the architecture of its family."""

MARKERS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_folder(
    path: Path,
    config: Mapping[str, Any],
    *,
    text: str = "hello world, hello there",
    vocab_size: int = 270,
    special: Sequence[str] = MARKERS,
    names: Mapping[str, str] = MappingProxyType({"eos_token": MARKERS[0]}),
    template: str = TEMPLATE,
    norm_spread: float = 0.3,
    seed: int = 11,
) -> Path:
    """Write the files of a model and return `path`, which must not exist.

    config: of an installed family; vocab_size and dtype are filled in. special: the first ids. text, vocab_size: as of
    `byte_tokenizer`. names: of special tokens, for tokenizer_config.json. Weights are float32, those of norms 1 with this
    standard deviation, all others 0 with 0.3.
    """
    tokenizer = byte_tokenizer(text, vocab_size, special)
    config = {**config, "vocab_size": len(tokenizer["model"]["vocab"]), "dtype": "float32"}
    with torch.device("meta"):
        model = find_family(Registry.discover(), config).build(config)
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for name, parameter in model.named_parameters():
        norm = name.endswith("norm.weight")
        spread = norm_spread if norm else 0.3
        noise = torch.randn(parameter.shape, generator=generator) if spread else torch.zeros(parameter.shape)
        weights.append((name, noise * spread + norm))
    files = {
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}).encode(),
        "chat_template.jinja": template.encode(),
    }
    write_model(path, config, weights, files)
    return path


def byte_tokenizer(text: str, vocab_size: int, special: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a tokenizer.json: special tokens, the 256 bytes, and the most frequent pairs of `text` merged until
    there are `vocab_size` tokens, or no pair is left (arXiv:1508.07909).
    """
    letters = _byte_letters()
    vocab = {token: number for number, token in enumerate((*special, *sorted(letters.values())))}
    words = Counter(re.findall(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+", text))
    spelled = [([letters[byte] for byte in word.encode()], count) for word, count in words.items()]
    merges: list[list[str]] = []
    while len(vocab) < vocab_size:
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, count in spelled:
            for pair in pairwise(pieces):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], vocab[pair[0]], vocab[pair[1]]))
        merges.append(list(best))
        vocab.setdefault("".join(best), len(vocab))
        spelled = [(_merged(pieces, best), count) for pieces, count in spelled]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[token], "content": token, **flags, "special": True} for token in special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        if found and (found[-1], piece) == pair:
            found[-1] += piece
        else:
            found.append(piece)
    return found


def _byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte: itself where it can be seen, else one from 256 on."""
    seen = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte if byte in seen else 256 + hidden.index(byte)) for byte in range(256)}
