"""A tiny Llama with a tokenizer, in a Hugging Face folder; data for it; and training runs of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pegboard.cli import run_cli
from pegboard.weights import write_model

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is two and three? five, the sum of them " * 9], trainer)
    return tokenizer


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    keys = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(CONFIG["num_hidden_layers"]):
        found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return found


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with random float32 weights."""
    folder = tmp_path_factory.mktemp("toy") / "model"
    tokenizer = _tokenizer()
    generator = torch.Generator().manual_seed(11)
    vocabulary = tokenizer.get_vocab_size()
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3 if len(shape) > 1 else torch.ones(shape)
        for name, shape in _shapes(vocabulary).items()
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }
    write_model(folder, {**CONFIG, **ids, "vocab_size": vocabulary, "dtype": "float32"}, tensors.items(), files)
    return folder


@pytest.fixture(scope="session")
def sums() -> list[dict[str, str]]:
    """30 rows of different lengths."""
    words = "zero one two three four five six seven eight nine".split()
    return [
        {
            "instruction": f"what is {words[a]} and {words[b]}?",
            "response": " ".join(["five,"] * (1 + (a * b) % 4) + [words[(a + b) % 10]]),
        }
        for a in range(5)
        for b in range(6)
    ]


@pytest.fixture(scope="session")
def data(sums: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows in a file."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sums))
    return path


@pytest.fixture(scope="session")
def arguments(toy_model: Path, data: Path) -> Callable[..., list[str]]:
    """Return the arguments of a small run, of which later ones win."""

    def make(output: Path, *more: str, config: str = "full") -> list[str]:
        paths = [f"model={toy_model}", f"data.path={data}", f"output={output}"]
        small = ["model.dtype=float32", "model.platform=cpu", "batch.size=2", "batch.length=64", "loggers=[jsonl]"]
        rest = ["data.format=instruct", "optimizer.lr=0.01", "steps=6"]
        return ["run", "sft", "--config", config, *paths, *small, *rest, *more]

    return make


@pytest.fixture(scope="session")
def train(arguments: Callable[..., list[str]]) -> Callable[..., Path]:
    """Run `peg run sft …` in this process and return the run folder. Any exit status but 0 fails the test."""

    def run(output: Path, *more: str, config: str = "full") -> Path:
        assert run_cli(arguments(output, *more, config=config)) == 0
        return output

    return run


@pytest.fixture(scope="session")
def start() -> Callable[[Sequence[str]], subprocess.Popen[str]]:
    """Start `peg` in a process of its own."""

    def run(args: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pegboard", *args],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], dict[int, float]]:
    """Return the training loss of each step that a run logged."""

    def read(folder: Path) -> dict[int, float]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return read
