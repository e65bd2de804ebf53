"""Storage types of tensors and their decoders, written from the format's definition (ggml's block structures)."""

from __future__ import annotations

from pegboard_gguf.blocks import iquants, kquants, small
from pegboard_gguf.blocks import round as plain
from pegboard_gguf.blocks.types import BlockType, Decoder

__all__ = ["BLOCK_TYPES", "BlockType"]


def _native(number: int, name: str, stored: str, size: int, dtype: str) -> BlockType:
    return BlockType(number, name, 1, size, native=stored, dtype=dtype)


def _quantised(number: int, name: str, block_size: int, block_bytes: int, decode: Decoder) -> BlockType:
    return BlockType(number, name, block_size, block_bytes, decode=decode)


# Q8_1 (9) and Q8_K (15) hold intermediate results of matrix products and never weights.
_ALL = (
    _native(0, "F32", "<f4", 4, "float32"),
    _native(1, "F16", "<f2", 2, "float16"),
    _quantised(2, "Q4_0", 32, 18, plain.q4_0),
    _quantised(3, "Q4_1", 32, 20, plain.q4_1),
    _quantised(6, "Q5_0", 32, 22, plain.q5_0),
    _quantised(7, "Q5_1", 32, 24, plain.q5_1),
    _quantised(8, "Q8_0", 32, 34, plain.q8_0),
    _quantised(10, "Q2_K", 256, 84, kquants.q2_k),
    _quantised(11, "Q3_K", 256, 110, kquants.q3_k),
    _quantised(12, "Q4_K", 256, 144, kquants.q4_k),
    _quantised(13, "Q5_K", 256, 176, kquants.q5_k),
    _quantised(14, "Q6_K", 256, 210, kquants.q6_k),
    _quantised(16, "IQ2_XXS", 256, 66, iquants.iq2_xxs),
    _quantised(17, "IQ2_XS", 256, 74, iquants.iq2_xs),
    _quantised(18, "IQ3_XXS", 256, 98, iquants.iq3_xxs),
    _quantised(19, "IQ1_S", 256, 50, iquants.iq1_s),
    _quantised(20, "IQ4_NL", 32, 18, small.iq4_nl),
    _quantised(21, "IQ3_S", 256, 110, iquants.iq3_s),
    _quantised(22, "IQ2_S", 256, 82, iquants.iq2_s),
    _quantised(23, "IQ4_XS", 256, 136, small.iq4_xs),
    _native(24, "I8", "<i1", 1, "int8"),
    _native(25, "I16", "<i2", 2, "int16"),
    _native(26, "I32", "<i4", 4, "int32"),
    _native(27, "I64", "<i8", 8, "int64"),
    _native(28, "F64", "<f8", 8, "float64"),
    _quantised(29, "IQ1_M", 256, 56, iquants.iq1_m),
    _native(30, "BF16", "<u2", 2, "bfloat16"),
    _quantised(34, "TQ1_0", 256, 54, small.tq1_0),
    _quantised(35, "TQ2_0", 256, 66, small.tq2_0),
    _quantised(39, "MXFP4", 32, 17, small.mxfp4),
    _quantised(40, "NVFP4", 64, 36, small.nvfp4),
)

BLOCK_TYPES = {kind.number: kind for kind in _ALL}
"""By number in the file."""
