"""Small tokenizers of each sort, and conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox, the lazy dog. hello hello world 😀 naïve café 日本 " * 4,
    "\n\ndef f(x):\n    return x\n" * 4,
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
TokenizerFiles = dict[str, bytes]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: bytes as letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("日本語", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2: spaces are letters, unknown characters are bytes, the first space is dropped again."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghilo.é"]
    merges = [("▁", "a"), ("l", "o"), ("h", "e"), ("▁", "▁")]
    vocabulary = {token: index for index, token in enumerate([*words, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    """As T5 and newer SentencePiece conversions."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("hello", -3.5), *((c, -5.0) for c in "abcdefghilot.é")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: continuations begin with ##."""
    vocabulary = {t: i for i, t in enumerate(["[UNK]", "the", "dog", "##s", "do", "n", "'", "t", ".", ",", "no"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def word_ends() -> Tokenizer:
    """As CLIP and GPT-1: tokens that end a word are marked."""
    vocabulary = {t: i for i, t in enumerate(["<unk>", "a</w>", "b</w>", "a", "b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def words() -> Tokenizer:
    """Without a decoder: words with spaces between them."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "bc": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def unusual() -> Tokenizer:
    """With a decoder that looks at the whole text."""
    tokenizer = words()
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("a+"), "A")])
    return tokenizer


SORTS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_first": lambda: metaspace("first"),
    "metaspace_never": lambda: metaspace("never"),
    "word_piece": word_piece,
    "word_ends": word_ends,
    "words": words,
    "unusual": unusual,
}


def tokenizer_files(sort: str = "byte_level", template: str | None = None, **settings: Any) -> TokenizerFiles:
    """Return the files of a tokenizer; settings are those of tokenizer_config.json."""
    if sort == "byte_level":
        settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|end|>", **settings}
    files = {
        "tokenizer.json": SORTS[sort]().to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    return files


@pytest.fixture(scope="session")
def make_files() -> Callable[..., TokenizerFiles]:
    return tokenizer_files


@pytest.fixture(scope="session")
def sorts() -> Mapping[str, Callable[[], Tokenizer]]:
    return SORTS


@pytest.fixture(scope="session")
def chatml() -> str:
    return CHATML
