"""A small GGUF writer, written from the format's definition, and tiny whole models made with it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
Pair = tuple[str, int, Any]
TensorSpec = tuple[str, Sequence[int], int, bytes]
"""Name, shape (slowest dimension first), type number, data."""


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_value(inner, item) for item in items)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q"}[kind], value)


def write_gguf(pairs: Sequence[Pair], tensors: Sequence[TensorSpec], *, version: int = 3, alignment: int = 32) -> bytes:
    """Return a file as bytes."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, value in pairs:
        out += text(key) + struct.pack("<I", kind) + _value(kind, value)
    data = b""
    for name, shape, number, content in tensors:
        data += bytes(-len(data) % alignment)
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        out += struct.pack("<IQ", number, len(data))
        data += content
    return out + bytes(-len(out) % alignment) + data


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE spells bytes with: printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def bpe_pairs(pre: str, **extra: tuple[int, Any]) -> list[Pair]:
    """The metadata of a byte-level tokenizer: 256 letters, five merges, two control tokens and one user-defined."""
    merges = ["h e", "l l", "he ll", "hell o", "\u0120 hello", "1 2", "12 3"]
    tokens = [*byte_letters(), *(m.replace(" ", "") for m in merges), "<s>", "</s>", "<tool>", "[PAD266]"]
    kinds = [1] * (len(tokens) - 4) + [3, 3, 4, 5]
    pairs: list[Pair] = [
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, pre),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
        ("tokenizer.ggml.bos_token_id", U32, tokens.index("<s>")),
        ("tokenizer.ggml.eos_token_id", U32, tokens.index("</s>")),
    ]
    return pairs + [(f"tokenizer.ggml.{key}", kind, value) for key, (kind, value) in extra.items()]


_GEMMA_KEYS = {"sliding_window": 9, "key_length": 16, "value_length": 16}
Model = tuple[bytes, dict[str, np.ndarray]]
MakeModel = Callable[..., Model]


def tiny_model(
    arch: str = "llama",
    *,
    tied: bool = False,
    drop: Sequence[str] = (),
    extra_pairs: Sequence[Pair] = (),
    extra_tensors: Mapping[str, np.ndarray] | None = None,
    tokenizer: Sequence[Pair] | None = None,
) -> Model:
    """Return a whole float32 model of 2 layers as bytes, and its tensors as they should come out, under Hugging
    Face names.

    hidden 64, 4 heads of 16, 2 key heads, intermediate 96. q and k of `llama` are stored interleaved and norms of Gemma with 1 added, as
    converters do.
    """
    tokenizer = bpe_pairs("gpt-2") if tokenizer is None else tokenizer
    vocab = next(len(value[1]) for key, _, value in tokenizer if key == "tokenizer.ggml.tokens")
    rng = np.random.default_rng(7)
    hidden, heads, kv_heads, width, inner = 64, 4, 2, 16, 96
    wanted: dict[str, np.ndarray] = {}
    stored: dict[str, np.ndarray] = {}
    gemma = arch.startswith("gemma")

    def put(name: str, target: str, *shape: int, interleave: int = 0) -> None:
        value = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        if gemma and target.endswith("norm.weight"):
            # As a bfloat16 checkpoint holds them: 1 more is exact in float32.
            value = (value.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
            stored[name], wanted[target] = value + np.float32(1), value
            return
        wanted[target] = value
        if interleave:
            value = value.reshape(interleave, 2, shape[0] // interleave // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        stored[name] = value

    put("token_embd.weight", "model.embed_tokens.weight", vocab, hidden)
    put("output_norm.weight", "model.norm.weight", hidden)
    if not tied and not gemma:
        put("output.weight", "lm_head.weight", vocab, hidden)
    permuted = arch == "llama"
    for i in range(2):
        b, h = f"blk.{i}.", f"model.layers.{i}."
        put(b + "attn_norm.weight", h + "input_layernorm.weight", hidden)
        if arch == "phi3":
            put(b + "ffn_norm.weight", h + "post_attention_layernorm.weight", hidden)
            put(b + "attn_qkv.weight", h + "self_attn.qkv_proj.weight", (heads + 2 * kv_heads) * width, hidden)
            put(b + "attn_output.weight", h + "self_attn.o_proj.weight", hidden, heads * width)
            put(b + "ffn_up.weight", h + "mlp.gate_up_proj.weight", 2 * inner, hidden)
            put(b + "ffn_down.weight", h + "mlp.down_proj.weight", hidden, inner)
            continue
        if gemma:
            put(b + "post_attention_norm.weight", h + "post_attention_layernorm.weight", hidden)
            put(b + "post_ffw_norm.weight", h + "post_feedforward_layernorm.weight", hidden)
        after = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        put(b + "ffn_norm.weight", f"{h}{after}.weight", hidden)
        put(b + "attn_q.weight", h + "self_attn.q_proj.weight", heads * width, hidden, interleave=heads * permuted)
        put(
            b + "attn_k.weight", h + "self_attn.k_proj.weight", kv_heads * width, hidden, interleave=kv_heads * permuted
        )
        put(b + "attn_v.weight", h + "self_attn.v_proj.weight", kv_heads * width, hidden)
        put(b + "attn_output.weight", h + "self_attn.o_proj.weight", hidden, heads * width)
        put(b + "ffn_gate.weight", h + "mlp.gate_proj.weight", inner, hidden)
        put(b + "ffn_up.weight", h + "mlp.up_proj.weight", inner, hidden)
        put(b + "ffn_down.weight", h + "mlp.down_proj.weight", hidden, inner)
        if arch == "qwen2":
            for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                put(f"{b}attn_{name}.bias", f"{h}self_attn.{name}_proj.bias", rows * width)
        if arch in ("qwen3", "gemma3"):
            put(b + "attn_q_norm.weight", h + "self_attn.q_norm.weight", width)
            put(b + "attn_k_norm.weight", h + "self_attn.k_norm.weight", width)
    stored |= dict(extra_tensors or {})
    pairs: list[Pair] = [
        ("general.architecture", STRING, arch),
        (f"{arch}.block_count", U32, 2),
        (f"{arch}.context_length", U32, 512),
        (f"{arch}.embedding_length", U32, hidden),
        (f"{arch}.feed_forward_length", U32, inner),
        (f"{arch}.attention.head_count", U32, heads),
        (f"{arch}.attention.head_count_kv", U32, kv_heads),
        (f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        (f"{arch}.rope.freq_base", F32, 10000.0),
        *([(f"{arch}.attention.{key}", U32, n) for key, n in _GEMMA_KEYS.items()] if gemma else []),
        *tokenizer,
        *extra_pairs,
    ]
    pairs = [pair for pair in {p[0]: p for p in pairs}.values() if pair[0] not in drop]
    tensors = [(name, v.shape, 0, v.astype("<f4").tobytes()) for name, v in stored.items() if name not in drop]
    return write_gguf(pairs, tensors), wanted


@pytest.fixture
def gguf_bytes() -> Callable[..., bytes]:
    return write_gguf


@pytest.fixture
def make_model() -> MakeModel:
    return tiny_model


@pytest.fixture
def make_bpe() -> Callable[..., list[Pair]]:
    return bpe_pairs


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes to a file and return its path."""

    def make(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return make
