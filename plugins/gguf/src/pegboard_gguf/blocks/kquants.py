"""Super-blocks of 256 values: Q2_K to Q6_K. Each holds 8 or 16 groups with small scales of their own under float16
scales.

Byte layouts: Q2_K s[16] q[64] d m; Q3_K h[32] q[64] s[12] d; Q4_K d m s[12] q[128]; Q5_K d m s[12] h[32] q[128];
Q6_K l[128] h[64] s[16] d.
"""

from __future__ import annotations

import numpy as np

from pegboard_gguf.blocks.bits import half, planes


def q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """16 groups of 16: d * s * q - m * t, where s and t are the halves of the group's scale byte and q has 2 bits."""
    scales = blocks[:, :16]
    values = planes(blocks[:, 16:80], width=32, step=2).reshape(-1, 16, 16)
    _affine(values, half(blocks, 80) * (scales & 15), half(blocks, 82) * (scales >> 4), out)


def q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """16 groups of 16: d * (s - 32) * (q - 4), where bit 2 of q is in h, value i of 32 planes in bit i // 32 of
    byte i % 32.
    """
    low = planes(blocks[:, 32:96], width=32, step=2)
    high = planes(blocks[:, :32], width=32, step=1)
    packed = blocks[:, 96:108]
    scale_low = np.concatenate((packed[:, :8] & 15, packed[:, :8] >> 4), axis=1)
    scale_high = planes(packed[:, 8:], width=4, step=2)
    scales = half(blocks, 108) * ((scale_low | scale_high << 4).astype(np.float32) - 32)
    values = (low | high << 2).reshape(-1, 16, 16)
    grouped = out.reshape(-1, 16, 16)
    np.subtract(values, np.float32(4), out=grouped)
    grouped *= scales[:, :, None]


def q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """8 groups of 32: d * s * q - m * t, q of 4 bits."""
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    values = planes(blocks[:, 16:], width=32, step=4).reshape(-1, 8, 32)
    _affine(values, half(blocks, 0) * scales, half(blocks, 2) * minima, out)


def q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """8 groups of 32: d * s * q - m * t; bit 4 of q is bit g of h[i] for value i of group g."""
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    values = planes(blocks[:, 48:], width=32, step=4) | planes(blocks[:, 16:48], width=32, step=1) << 4
    _affine(values.reshape(-1, 8, 32), half(blocks, 0) * scales, half(blocks, 2) * minima, out)


def q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """16 groups of 16: d * s * (q - 32), s signed; q has 4 bits in l and 2 in h."""
    values = planes(blocks[:, :128], width=64, step=4) | planes(blocks[:, 128:192], width=32, step=2) << 4
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    grouped = out.reshape(-1, 16, 16)
    np.subtract(values.reshape(-1, 16, 16), np.float32(32), out=grouped)
    grouped *= scales[:, :, None]


def _affine(values: np.ndarray, scales: np.ndarray, minima: np.ndarray, out: np.ndarray) -> None:
    """out = scales * values - minima. values: [n, groups, size]; scales, minima: float32 [n, groups]."""
    grouped = out.reshape(values.shape)
    np.multiply(values, scales[:, :, None], out=grouped)
    grouped -= minima[:, :, None]


def _six_bit_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack 8 scales and 8 minima of 6 bits from 12 bytes, [n, 8] each.

    Of the first four, byte i has scale i and byte 4 + i minimum i in its low 6 bits. Of the last four, byte 8 + i
    has the low 4 bits of scale and minimum 4 + i, whose high 2 bits are the top of bytes i and 4 + i.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6) << 4), axis=1)
    minima = np.concatenate((second & 63, (third >> 4) | (second >> 6) << 4), axis=1)
    return scales, minima
