"""Decoders against scalar ones written here from the format's definition, and against digests of an independent
decoder's output.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import numpy as np
import pytest

from pegboard_gguf.blocks import BLOCK_TYPES, BlockType
from pegboard_gguf.container import TensorInfo
from pegboard_gguf.tensors import CHUNK_VALUES, GgufTensor

KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
QUANTISED = [kind for kind in BLOCK_TYPES.values() if kind.decode is not None]


def blocks_of(kind: BlockType, count: int = 64) -> np.ndarray:
    """Return [count, block_bytes] of bytes that are the same everywhere."""
    data = hashlib.shake_128(kind.name.encode()).digest(count * kind.block_bytes)
    return np.frombuffer(data, np.uint8).reshape(count, kind.block_bytes)


def decode(kind: BlockType, blocks: np.ndarray) -> np.ndarray:
    out = np.empty((len(blocks), kind.block_size), np.float32)
    assert kind.decode is not None
    with np.errstate(all="ignore"):
        kind.decode(blocks, out)
    return out


def f16(block: bytes, at: int) -> float:
    value: float = struct.unpack_from("<e", block, at)[0]
    return value


def q4(block: bytes, d: float, m: float, at: int, shift: int) -> list[float]:
    low = [d * ((b & 15) - shift) + m for b in block[at : at + 16]]
    return low + [d * ((b >> 4) - shift) + m for b in block[at : at + 16]]


def q5(block: bytes, d: float, m: float, high: int, shift: int) -> list[float]:
    (top,) = struct.unpack_from("<I", block, high)
    halves = [block[high + 4 + i % 16] >> 4 * (i // 16) & 15 for i in range(32)]
    return [d * ((halves[i] | (top >> i & 1) << 4) - shift) + m for i in range(32)]


def q2_k(block: bytes) -> list[float]:
    d, m = f16(block, 80), f16(block, 82)
    out = []
    for i in range(256):
        q = block[16 + i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
        out.append(d * (block[i // 16] & 15) * q - m * (block[i // 16] >> 4))
    return out


def k_scale(packed: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4


def q4_k(block: bytes) -> list[float]:
    d, m = f16(block, 0), f16(block, 2)
    out = []
    for i in range(256):
        scale, low = k_scale(block[4:16], i // 32)
        out.append(d * scale * (block[16 + i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15) - m * low)
    return out


def q5_k(block: bytes) -> list[float]:
    d, m = f16(block, 0), f16(block, 2)
    out = []
    for i in range(256):
        scale, low = k_scale(block[4:16], i // 32)
        q = block[48 + i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15
        out.append(d * scale * (q | (block[16 + i % 32] >> i // 32 & 1) << 4) - m * low)
    return out


def q6_k(block: bytes) -> list[float]:
    d, scales = f16(block, 208), struct.unpack_from("<16b", block, 192)
    out = []
    for i in range(256):
        half, j = i // 128, i % 128
        low = block[half * 64 + j % 64] >> 4 * (j // 64) & 15
        high = block[128 + half * 32 + j % 32] >> 2 * (j // 32) & 3
        out.append(d * scales[i // 16] * ((low | high << 4) - 32))
    return out


def mxfp4(block: bytes) -> list[float]:
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = [b & 15 for b in block[1:]] + [b >> 4 for b in block[1:]]
    return [2.0 ** (block[0] - 127) * (-1 if c & 8 else 1) * table[c & 7] for c in codes]


SCALAR: dict[str, Callable[[bytes], list[float]]] = {
    "Q4_0": lambda b: q4(b, f16(b, 0), 0.0, 2, 8),
    "Q4_1": lambda b: q4(b, f16(b, 0), f16(b, 2), 4, 0),
    "Q5_0": lambda b: q5(b, f16(b, 0), 0.0, 2, 16),
    "Q5_1": lambda b: q5(b, f16(b, 0), f16(b, 2), 4, 0),
    "Q8_0": lambda b: [f16(b, 0) * q for q in struct.unpack_from("<32b", b, 2)],
    "Q2_K": q2_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "MXFP4": mxfp4,
}

# blake2b of the float32 output of the `gguf` package, version 0.19.0, for the blocks of `blocks_of`.
DIGESTS = {
    "Q4_0": "db24d63da8101a2a",
    "Q4_1": "ed768bffd540644c",
    "Q5_0": "641dc43f14e3d806",
    "Q5_1": "a95f15ac60e86d40",
    "Q8_0": "3f79090e8405d097",
    "Q2_K": "ed3ecdb70ccd6a9f",
    "Q3_K": "4f50bfcb58b93ad9",
    "Q4_K": "0642f36cec661de0",
    "Q5_K": "c02f77a42b5f63d7",
    "Q6_K": "3a37ede750480d2a",
    "IQ2_XXS": "708a2a0b5b9ea73f",
    "IQ2_XS": "b05118749c4c3fed",
    "IQ3_XXS": "127a0824c9938d94",
    "IQ1_S": "5da7b704185a638e",
    "IQ4_NL": "ca5e77ad939f7698",
    "IQ3_S": "93526f772d857b7b",
    "IQ2_S": "2643dd749ce71682",
    "IQ4_XS": "65e2cd1cade24267",
    "IQ1_M": "78615e58c2868758",
    "TQ1_0": "0f5e6cc809bc9596",
    "TQ2_0": "81fcc26e668d6c53",
    "MXFP4": "e5728d1a6bf03cdf",
    "NVFP4": "7cc777778793187c",
}


@pytest.mark.parametrize("name", SCALAR)
def test_values_are_those_of_the_definition(name: str) -> None:
    blocks = blocks_of(KINDS[name])
    expected = np.array([SCALAR[name](block.tobytes()) for block in blocks])
    finite = (np.abs(expected) < np.finfo(np.float32).max).all(axis=1)
    assert finite.sum() > 40
    found = decode(KINDS[name], blocks)[finite]
    scale = np.abs(expected[finite]).max(axis=1, keepdims=True)
    assert (np.abs(found - expected[finite]) <= 2e-6 * scale).all()


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_output_is_bit_exact(kind: BlockType) -> None:
    found = np.nan_to_num(decode(kind, blocks_of(kind)), nan=0.0, posinf=1.0, neginf=-1.0) + np.float32(0)
    assert hashlib.blake2b(found.astype("<f4").tobytes(), digest_size=8).hexdigest() == DIGESTS[kind.name]


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "F32", "F16", "BF16", "I32", "F64"])
@pytest.mark.parametrize("permuted", [False, True])
def test_a_tensor_larger_than_a_chunk_is_whole(name: str, permuted: bool) -> None:
    kind = KINDS[name]
    rows, width = CHUNK_VALUES // 512 + 7, 1024
    count = rows * width // kind.block_size
    data = hashlib.shake_128(name.encode()).digest(count * kind.block_bytes)
    info = TensorInfo("w", (rows, width), kind, 3, len(data))
    order = np.random.default_rng(0).permutation(rows) if permuted else None
    tensor = GgufTensor("w", info, memoryview(b"xyz" + data), order)
    loaded = tensor.load()
    assert loaded.dtype == tensor.dtype and loaded.shape == (rows, width)
    raw = np.frombuffer(data, np.uint8)
    if kind.native is None:
        expected = decode(kind, raw.reshape(count, kind.block_bytes)).reshape(rows, width)
    elif name == "BF16":
        expected = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(rows, width)
    else:
        expected = raw.view(kind.native).reshape(rows, width)
    expected = expected if order is None else expected[order]
    found = loaded.float().numpy() if name == "BF16" else loaded.numpy()
    np.testing.assert_array_equal(found, expected)
    part = tensor.rows(5, 50)
    np.testing.assert_array_equal(part.float().numpy() if name == "BF16" else part.numpy(), expected[5:50])


def test_a_quantised_vector_is_cut_inside_blocks() -> None:
    kind = KINDS["Q8_0"]
    blocks = blocks_of(kind, 3)
    tensor = GgufTensor("b", TensorInfo("b", (96,), kind, 0, 102), memoryview(blocks.tobytes()))
    np.testing.assert_array_equal(tensor.rows(30, 70).numpy(), decode(kind, blocks).reshape(-1)[30:70])
