"""Pieces that the decoders share. n is the number of blocks throughout."""

from __future__ import annotations

import numpy as np


def half(blocks: np.ndarray, offset: int) -> np.ndarray:
    """Return the float16 at byte `offset` of each block as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)


def words(blocks: np.ndarray, start: int, stop: int, dtype: str) -> np.ndarray:
    """Return bytes start … stop - 1 of each block as little-endian integers, [n, (stop - start) / itemsize]."""
    return np.ascontiguousarray(blocks[:, start:stop]).view(dtype)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """Return [n, 2 k] uint8 from [n, k]: all low halves of the bytes, then all high halves."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def bits(packed: np.ndarray) -> np.ndarray:
    """Return the bits of [n, k] bytes as [n, 8 k] uint8 of 0 and 1, lowest bit of each byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def planes(packed: np.ndarray, *, width: int, step: int) -> np.ndarray:
    """Unpack values of `step` bits that lie in planes: bytes in runs of `width`, of each run first all lowest
    values, then the next.

    packed: [n, k] uint8. Returns [n, k * 8 / step] uint8.
    """
    runs = packed.reshape(len(packed), -1, 1, width)
    shifts = np.arange(0, 8, step, dtype=np.uint8)[:, None]
    values: np.ndarray = (runs >> shifts) & np.uint8((1 << step) - 1)
    return values.reshape(len(packed), -1)
