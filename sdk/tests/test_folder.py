"""The toy folder: its tokenizer is that which the tokenizers library trains, its files are read by the core."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import Message
from pegboard_sdk.toys.folder import MARKERS, SMALL, byte_tokenizer, write_folder

TEXTS = ["hello world, hello there", "what is two and three? five, the sum of them " * 9, "", "日本 ünï  cöde 12 345"]


def trained(text: str, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(MARKERS),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("vocab_size", [262, 270, 320])
def test_the_tokenizer_is_what_would_be_trained(text: str, vocab_size: int) -> None:
    ours, theirs = byte_tokenizer(text, vocab_size, MARKERS), trained(text, vocab_size)
    assert ours["model"]["vocab"] == theirs.get_vocab()
    loaded = Tokenizer.from_str(json.dumps(ours))
    for other in (*TEXTS, "<|user|>hello<|end|>"):
        ids = loaded.encode(other).ids
        assert ids == theirs.encode(other).ids
        assert loaded.decode(ids, skip_special_tokens=False) == other


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SMALL, "eos_token_id": 0}
    folder = write_folder(tmp_path / "toy", config)
    registry = Registry.discover()
    opened = open_any(registry, str(folder))
    tokenizer = opened.tokenizer(registry)
    assert tuple(tokenizer.eos_ids) == (0,)
    assert tokenizer.chat_text([Message("user", "hello")]) == "<|user|>hello<|end|><|assistant|>"
    built = opened.build(registry, dtype="float32", platform="cpu")
    again = write_folder(tmp_path / "again", config)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    other = open_any(registry, str(write_folder(tmp_path / "other", config, seed=12))).build(registry, dtype="float32")
    pairs = zip(built.model.parameters(), other.model.parameters(), strict=True)
    assert not any(torch.equal(one, two) for one, two in pairs)
    assert built.model.vocab_size == 270
