"""Blocks of 32 values with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Byte layouts: Q4_0 d q[16]; Q4_1 d m q[16]; Q5_0 d h[4] q[16]; Q5_1 d m h[4] q[16]; Q8_0 d q[32].
d and m are float16. Value i < 16 is the low half of q[i], value i + 16 its high half; bit i of h is the fifth bit
of value i.
"""

from __future__ import annotations

import numpy as np

from pegboard_gguf.blocks.bits import bits, half, nibbles


def q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * (q - 8)."""
    np.subtract(nibbles(blocks[:, 2:]), np.float32(8), out=out)
    out *= half(blocks, 0)


def q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * q + m."""
    np.multiply(nibbles(blocks[:, 4:]), half(blocks, 0), out=out)
    out += half(blocks, 2)


def q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * (q - 16)."""
    q = nibbles(blocks[:, 6:]) | bits(blocks[:, 2:6]) << 4
    np.subtract(q, np.float32(16), out=out)
    out *= half(blocks, 0)


def q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * q + m."""
    q = nibbles(blocks[:, 8:]) | bits(blocks[:, 4:8]) << 4
    np.multiply(q, half(blocks, 0), out=out)
    out += half(blocks, 2)


def q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * q, q signed."""
    np.multiply(blocks[:, 2:].view(np.int8), half(blocks, 0), out=out)
