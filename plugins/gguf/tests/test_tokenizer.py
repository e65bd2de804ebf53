"""Tokenizer files: what the `tokenizers` library makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from pegboard.errors import ModelError
from pegboard_gguf.container import Container, parse
from pegboard_gguf.pretokenizers import PRE_TOKENIZERS
from pegboard_gguf.tokenizer import tokenizer_files

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
Make = Callable[..., Any]


@pytest.fixture
def contain(gguf_bytes: Make) -> Callable[[list[Any]], Container]:
    def make(pairs: list[Any]) -> Container:
        return parse(gguf_bytes([("general.architecture", STRING, "llama"), *pairs], []))

    return make


@pytest.fixture
def byte_level(contain: Make, make_bpe: Make) -> Callable[..., Tokenizer]:
    def make(pre: str = "gpt-2", **extra: Any) -> Tokenizer:
        return Tokenizer.from_str(tokenizer_files(contain(make_bpe(pre, **extra)))["tokenizer.json"].decode())

    return make


TEXTS = ["hello hello", " 12345", "héllo wörld", "日本 😀\n\n  x\t", "it's we'LL", "HelloWorld123 a/b\r\n", "\u0301e"]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_loads_and_keeps_text(byte_level: Make, pre: str) -> None:
    tokenizer = byte_level(pre)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text or PRE_TOKENIZERS[pre].nfc


def test_merges_apply(byte_level: Make) -> None:
    assert byte_level().encode("hello hello").tokens == ["hello", "\u0120hello"]


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("gpt-2", ["123", "4", "5"]),
        ("smollm", ["1", "2", "3", "4", "5"]),
        ("qwen2", ["1", "2", "3", "4", "5"]),
        ("llama-bpe", ["<s>", "123", "4", "5"]),
        ("tekken", ["<s>", "1", "2", "3", "4", "5"]),
    ],
)
def test_digits_are_cut_as_the_models_cut_them(byte_level: Make, pre: str, tokens: list[str]) -> None:
    assert byte_level(pre).encode("12345").tokens == tokens


def test_markers_follow_the_file(byte_level: Make) -> None:
    assert byte_level("llama-bpe", add_bos_token=(BOOL, 0)).encode("he").tokens == ["he"]
    both = byte_level("gpt-2", add_bos_token=(BOOL, 1), add_eos_token=(BOOL, 1))
    assert both.encode("he").tokens == ["<s>", "he", "</s>"]
    assert both.encode("he", add_special_tokens=False).tokens == ["he"]


def test_added_tokens_are_never_cut(byte_level: Make) -> None:
    tokenizer = byte_level()
    encoded = tokenizer.encode("he</s><tool>he")
    assert encoded.tokens == ["he", "</s>", "<tool>", "he"]
    assert tokenizer.decode(encoded.ids) == "he<tool>he"
    assert tokenizer.token_to_id("[PAD266]") is None


def test_config_and_chat_template(contain: Make, make_bpe: Make) -> None:
    template = "{{ messages[0]['content'] }}"
    files = tokenizer_files(contain([*make_bpe("gpt-2"), ("tokenizer.chat_template", STRING, template)]))
    config = json.loads(files["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<s>", "</s>", False)
    assert config["chat_template"] == files["chat_template.jinja"].decode() == template


def sentencepiece_pairs(scores: list[float] | None = None) -> list[Any]:
    pieces = ["\u2581", "h", "e", "\u2581he", "he", "\u2581h"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    ranked = [0.0] * 262 + [-1.0, -2.0, -0.5]
    return [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.scores", ARRAY, (F32, ranked if scores is None else scores)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
    ]


def test_sentencepiece_merges_falls_back_to_bytes_and_keeps_spaces(contain: Make) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_files(contain(sentencepiece_pairs()))["tokenizer.json"].decode())
    encoded = tokenizer.encode("he\u00e9")
    assert encoded.tokens == ["<s>", "\u2581he", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoded.ids) == "he\u00e9"
    assert tokenizer.decode(tokenizer.encode("  he he").ids) == "  he he"


def test_damaged_tokenizers_are_refused(contain: Make, make_bpe: Make) -> None:
    def changed(key: str, kind: int, value: Any) -> list[Any]:
        return [(k, kind, value) if k == key else (k, t, v) for k, t, v in make_bpe("gpt-2")]

    cases: list[tuple[list[Any], str]] = [
        ([], "no tokenizer"),
        (changed("tokenizer.ggml.model", STRING, "bert"), "'bert'"),
        (changed("tokenizer.ggml.pre", STRING, "lama-bpe"), "did you mean 'llama-bpe'"),
        (changed("tokenizer.ggml.merges", ARRAY, (STRING, ["h zz"])), "merge 0"),
        (changed("tokenizer.ggml.merges", ARRAY, (STRING, ["he"])), "merge 0"),
        (changed("tokenizer.ggml.token_type", ARRAY, (I32, [1])), "1 entries"),
        (changed("tokenizer.ggml.bos_token_id", U32, 9999), "9999, outside"),
        ([pair for pair in make_bpe("gpt-2") if not pair[0].endswith("merges")], "without tokenizer.ggml.merges"),
        (sentencepiece_pairs([0.0]), "1 entries in tokenizer.ggml.scores"),
    ]
    for pairs, message in cases:
        with pytest.raises(ModelError, match=message):
            tokenizer_files(contain(pairs))
