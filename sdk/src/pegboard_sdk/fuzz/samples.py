"""Small valid files that mutations start from."""

from __future__ import annotations

import json
import random
from typing import Any

from pegboard_sdk.fuzz.bytes import Sample

_U32, _I32, _F32, _STRING, _ARRAY, _U64 = 4, 5, 6, 8, 9, 10
_F32_TENSOR, _Q4_1_TENSOR, _Q8_0_TENSOR = 0, 3, 8


def safetensors_sample(source: random.Random) -> Sample:
    """A file of a few tensors of several dtypes."""
    shapes = {"BF16": 2, "F32": 4, "I64": 8, "U8": 1, "F16": 2, "BOOL": 1}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if source.random() < 0.5 else {}
    end = 0
    for number in range(source.randint(1, 5)):
        dtype, item = source.choice(list(shapes.items()))
        shape = [source.randint(1, 6) for _ in range(source.randint(0, 3))]
        size = item
        for extent in shape:
            size *= extent
        header[f"model.layers.{number}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    sample = Sample()
    sample.integer(len(encoded), 8)
    sample.data += encoded
    sample.data += bytes(source.randrange(256) for _ in range(end))
    return sample


def gguf_sample(source: random.Random) -> Sample:
    """A whole llama of one layer with a byte-level tokenizer, some of its matrices in blocks."""
    sample = Sample()
    hidden, inner = 32, 64
    letters = [chr(0x100 + i) for i in range(40)] + ["a", "b", "ab", "<s>", "</s>"]
    pairs: list[tuple[str, int, Any]] = [
        ("general.architecture", _STRING, "llama"),
        ("llama.block_count", _U32, 1),
        ("llama.context_length", _U32, 64),
        ("llama.embedding_length", _U32, hidden),
        ("llama.feed_forward_length", _U32, inner),
        ("llama.attention.head_count", _U32, 2),
        ("llama.attention.head_count_kv", _U32, 1),
        ("llama.attention.layer_norm_rms_epsilon", _F32, 1e-5),
        ("llama.rope.freq_base", _F32, 10000.0),
        ("tokenizer.ggml.model", _STRING, "gpt2"),
        ("tokenizer.ggml.pre", _STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, letters)),
        ("tokenizer.ggml.token_type", _ARRAY, (_I32, [1] * (len(letters) - 2) + [3, 3])),
        ("tokenizer.ggml.merges", _ARRAY, (_STRING, ["a b"])),
        ("tokenizer.ggml.eos_token_id", _U32, len(letters) - 1),
        ("tokenizer.chat_template", _STRING, "{{ messages }}"),
        ("general.file_type", _U64, 1),
    ]
    matrices = {
        "token_embd.weight": (len(letters), hidden),
        "blk.0.attn_q.weight": (hidden, hidden),
        "blk.0.attn_k.weight": (hidden // 2, hidden),
        "blk.0.attn_v.weight": (hidden // 2, hidden),
        "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_gate.weight": (inner, hidden),
        "blk.0.ffn_up.weight": (inner, hidden),
        "blk.0.ffn_down.weight": (hidden, inner),
    }
    vectors = ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    tensors: list[tuple[str, tuple[int, ...], int]] = [(name, (hidden,), _F32_TENSOR) for name in vectors]
    kinds = (_F32_TENSOR, _Q4_1_TENSOR, _Q8_0_TENSOR)
    tensors += [(name, shape, source.choice(kinds)) for name, shape in matrices.items()]
    sample.data += b"GGUF"
    sample.integer(3, 4)
    sample.integer(len(tensors), 8)
    sample.integer(len(pairs), 8)
    for key, kind, value in pairs:
        sample.text(key)
        sample.integer(kind, 4)
        _value(sample, kind, value)
    sizes = [_bytes_of(shape, kind) for _, shape, kind in tensors]
    offset = 0
    for (name, shape, kind), size in zip(tensors, sizes, strict=True):
        sample.text(name)
        sample.integer(len(shape), 4)
        for extent in reversed(shape):
            sample.integer(extent, 8)
        sample.integer(kind, 4)
        sample.integer(offset, 8)
        offset += size + (-size % 32)
    sample.pad(32)
    for size in sizes:
        sample.data += source.randbytes(size)
        sample.pad(32)
    return sample


def _value(sample: Sample, kind: int, value: Any) -> None:
    if kind == _ARRAY:
        inner, items = value
        sample.integer(inner, 4)
        sample.integer(len(items), 8)
        for item in items:
            _value(sample, inner, item)
    elif kind == _STRING:
        sample.text(value)
    elif kind == _F32:
        sample.real(value)
    else:
        sample.integer(value, 8 if kind == _U64 else 4)


def _bytes_of(shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor: 4 a number, or blocks of 32 of 20 (Q4_1) or 34 (Q8_0) bytes."""
    count = 1
    for extent in shape:
        count *= extent
    return {_F32_TENSOR: 4 * count, _Q4_1_TENSOR: count // 32 * 20, _Q8_0_TENSOR: count // 32 * 34}[kind]
