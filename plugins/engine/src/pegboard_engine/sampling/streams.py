"""Random numbers that depend on a seed and a position alone: SplitMix64 (doi:10.1145/2714064.2660195) as a hash."""

from __future__ import annotations

import numpy as np

_STEP = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def stream(seed: int, answer: int) -> int:
    """Return the 64-bit seed of one answer's stream."""
    return _mix_int(_mix_int(seed & _WORD) ^ _mix_int((answer + 1) * 0xD1B54A32D192ED03 & _WORD))


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return [M] float64 in [0, 1), a hash of uint64 seeds and int64 positions."""
    x = positions.astype(np.uint64)
    x *= np.uint64(_STEP)
    x += seeds
    _mix(x)
    x >>= np.uint64(11)
    return x * 2.0**-53


def _mix(x: np.ndarray) -> None:
    """The finaliser, in place (unsigned integers wrap)."""
    x += np.uint64(_STEP)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)


def _mix_int(x: int) -> int:
    x = (x + _STEP) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)
