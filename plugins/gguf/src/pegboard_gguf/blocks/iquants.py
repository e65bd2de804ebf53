"""Super-blocks of 256 values that are rows of a grid, with signs beside them: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS,
IQ2_S, IQ3_XXS, IQ3_S.

Byte layouts: IQ2_XXS d g[64]; IQ2_XS d q[64] s[32/4]; IQ2_S d q[32] v[32] h[8] s[8]; IQ3_XXS d q[64] g[32];
IQ3_S d q[64] h[8] v[32] s[4]; IQ1_S d q[32] h[16]; IQ1_M q[32] h[16] s[8].
v: sign bits, one a value. h: high bits of the grid indices.
"""

from __future__ import annotations

import numpy as np

from pegboard_gguf.blocks.bits import bits, half, planes, words
from pegboard_gguf.blocks.grids import even_signs, grid, signs

_SEVENS = np.array([0, 7, 14, 21], np.uint32)
_THREES = np.array([0, 3, 6, 9], np.uint16)
_DELTA = np.float32(0.125)


def iq2_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    """8 groups of 32, 8 bytes each: 4 grid indices, then 4 sign indices of 7 bits and a scale of 4: d * (s + 1/2)
    / 4.
    """
    pairs = words(blocks, 2, 66, "<u4").reshape(-1, 8, 2)
    index = np.ascontiguousarray(pairs[:, :, 0]).view(np.uint8)
    scales = half(blocks, 0) * ((pairs[:, :, 1] >> 28).astype(np.float32) + 0.5) * np.float32(0.25)
    _signed(grid("iq2_xxs"), index, even_signs(), _sevens(pairs[:, :, 1]), scales, out)


def iq2_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    """16 groups of 16: each 8 values have a grid index of 9 bits and a sign index of 7; d * (s + 1/2) / 4."""
    packed = words(blocks, 2, 66, "<u2")
    scales = _quarter_scales(blocks, 66)
    _signed(grid("iq2_xs"), packed & 511, even_signs(), packed >> 9, scales, out)


def iq2_s(blocks: np.ndarray, out: np.ndarray) -> None:
    """16 groups of 16: each 8 values have a grid index of 8 + 2 bits and 8 sign bits; d * (s + 1/2) / 4."""
    index = blocks[:, 2:34] | planes(blocks[:, 66:74], width=1, step=2).astype(np.uint16) << 8
    _signed(grid("iq2_s"), index, signs(), blocks[:, 34:66], _quarter_scales(blocks, 74), out)


def iq3_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    """8 groups of 32: 8 grid rows of 4 values each, 4 sign indices of 7 bits and a scale of 4: d * (s + 1/2) / 2."""
    tail = words(blocks, 66, 98, "<u4")
    scales = half(blocks, 0) * ((tail >> 28).astype(np.float32) + 0.5) * np.float32(0.5)
    _signed(grid("iq3_xxs"), blocks[:, 2:66], even_signs(), _sevens(tail), scales, out)


def iq3_s(blocks: np.ndarray, out: np.ndarray) -> None:
    """8 groups of 32: each 4 values have a grid index of 8 + 1 bits; 8 sign bits a byte; d * (2 s + 1)."""
    index = blocks[:, 2:66] | bits(blocks[:, 66:74]).astype(np.uint16) << 8
    scales = half(blocks, 0) * (2 * planes(blocks[:, 106:110], width=1, step=4) + 1).astype(np.float32)
    _signed(grid("iq3_s"), index, signs(), blocks[:, 74:106], scales, out)


def iq1_s(blocks: np.ndarray, out: np.ndarray) -> None:
    """8 groups of 32: d * (2 s + 1) * (row +- 1/8); h holds 4 index tops of 3 bits, s of 3 and the sign of the
    shift.
    """
    high = words(blocks, 34, 50, "<u2")
    scales = half(blocks, 0) * (2 * (high >> 12 & 7) + 1).astype(np.float32)
    shift = np.where(high & 0x8000, -_DELTA, _DELTA)
    tops = (high[:, :, None] >> _THREES & 7).reshape(len(blocks), 32)
    _shifted(blocks[:, 2:34] | tops << 8, np.repeat(scales, 4, axis=1), np.repeat(shift, 4, axis=1), out)


def iq1_m(blocks: np.ndarray, out: np.ndarray) -> None:
    """16 groups of 16: d * (2 s + 1) * (row +- 1/8); the float16 d lies in the top 4 bits of the four 16-bit scale
    words.
    """
    packed = words(blocks, 48, 56, "<u2")
    tops = (packed >> 12) << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(tops, axis=1, keepdims=True).astype("<u2").view("<f2").astype(np.float32)
    scales = d * (2 * (packed[:, :, None] >> _THREES & 7) + 1).reshape(len(blocks), 16).astype(np.float32)
    high = planes(blocks[:, 32:48], width=1, step=4)
    shift = np.where(high & 8, -_DELTA, _DELTA)
    _shifted(blocks[:, :32] | (high & 7).astype(np.uint16) << 8, np.repeat(scales, 2, axis=1), shift, out)


def _signed(
    rows: np.ndarray,
    index: np.ndarray,
    sign_rows: np.ndarray,
    sign_index: np.ndarray,
    scales: np.ndarray,
    out: np.ndarray,
) -> None:
    """out = scale * row * sign. index: [n, 256 / row length]; sign_index: [n, 32], each for 8 values; scales: [n,
    groups].
    """
    rows.take(index, axis=0, out=out.reshape(*index.shape, rows.shape[1]), mode="clip")
    eights = out.reshape(-1, 32, 8)
    eights *= sign_rows[sign_index]
    grouped = out.reshape(*scales.shape, -1)
    grouped *= scales[:, :, None]


def _shifted(index: np.ndarray, scales: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
    """out = scale * (row + shift), all [n, 32], each for 8 values."""
    eights = out.reshape(-1, 32, 8)
    grid("iq1").take(index, axis=0, out=eights, mode="clip")
    eights += shift[:, :, None]
    eights *= scales[:, :, None]


def _sevens(packed: np.ndarray) -> np.ndarray:
    """Return four numbers of 7 bits from each of [n, 8] words, as [n, 32]."""
    found: np.ndarray = packed[:, :, None] >> _SEVENS & 127
    return found.reshape(len(packed), 32)


def _quarter_scales(blocks: np.ndarray, start: int) -> np.ndarray:
    """Return d * (s + 1/2) / 4 for the 16 scales of 4 bits at byte `start`, float32 [n, 16]."""
    found: np.ndarray = (
        half(blocks, 0) * (planes(blocks[:, start : start + 8], width=1, step=4) + np.float32(0.5)) * np.float32(0.25)
    )
    return found
