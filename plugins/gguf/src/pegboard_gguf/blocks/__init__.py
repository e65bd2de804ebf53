"""Storage types of tensors and their decoders, written from the format's definition (ggml's block structures)."""

from __future__ import annotations

from pegboard_gguf.blocks import round as plain
from pegboard_gguf.blocks.types import BlockType, Decoder

__all__ = ["BLOCK_TYPES", "BlockType"]


def _native(number: int, name: str, stored: str, size: int, dtype: str) -> BlockType:
    return BlockType(number, name, 1, size, native=stored, dtype=dtype)


def _quantised(number: int, name: str, block_size: int, block_bytes: int, decode: Decoder) -> BlockType:
    return BlockType(number, name, block_size, block_bytes, decode=decode)


_ALL = (
    _native(0, "F32", "<f4", 4, "float32"),
    _native(1, "F16", "<f2", 2, "float16"),
    _quantised(2, "Q4_0", 32, 18, plain.q4_0),
    _quantised(3, "Q4_1", 32, 20, plain.q4_1),
    _quantised(6, "Q5_0", 32, 22, plain.q5_0),
    _quantised(7, "Q5_1", 32, 24, plain.q5_1),
    _quantised(8, "Q8_0", 32, 34, plain.q8_0),
    _native(24, "I8", "<i1", 1, "int8"),
    _native(25, "I16", "<i2", 2, "int16"),
    _native(26, "I32", "<i4", 4, "int32"),
    _native(27, "I64", "<i8", 8, "int64"),
    _native(28, "F64", "<f8", 8, "float64"),
    _native(30, "BF16", "<u2", 2, "bfloat16"),
)

BLOCK_TYPES = {kind.number: kind for kind in _ALL}
"""By number in the file."""
