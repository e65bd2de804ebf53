"""Ternary and 4-bit floating-point blocks: TQ1_0, TQ2_0, MXFP4, NVFP4, and the 4-bit tables IQ4_NL and IQ4_XS.

Byte layouts: TQ1_0 q[48] h[4] d; TQ2_0 q[64] d; MXFP4 e q[16]; NVFP4 s[4] q[32]; IQ4_NL d q[16]; IQ4_XS d h[2]
l[4] q[128].
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pegboard_gguf.blocks.bits import half, nibbles, planes, words

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of a 4-bit float (OCP Microscaling Formats 1.0, section 5.3.3); its minus zero is read as zero."""
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def tq1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * (digit - 1), five base-3 digits a byte (four in h): digit k of byte b is (b * 3^k mod 256) * 3 >> 8."""
    parts = [_digits(blocks[:, :32], 5), _digits(blocks[:, 32:48], 5), _digits(blocks[:, 48:52], 4)]
    np.subtract(np.concatenate(parts, axis=1), np.float32(1), out=out)
    out *= half(blocks, 52)


def tq2_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * (q - 1), q of 2 bits."""
    np.subtract(planes(blocks[:, :64], width=32, step=2), np.float32(1), out=out)
    out *= half(blocks, 64)


def mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    """2^(e - 127) * a 4-bit float, 32 values."""
    _E2M1.take(nibbles(blocks[:, 1:]), out=out, mode="clip")
    # Twice the value of e = 0 is within float32's normal range, so this halving loses nothing.
    np.multiply(out, np.float32(2), out=out)
    out *= np.ldexp(np.float32(0.5), blocks[:, :1].astype(np.int32) - 127)


def nvfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    """4 groups of 16: an unsigned 8-bit float (4 exponent, 3 fraction bits, bias 7) * a 4-bit float."""
    packed = blocks[:, 4:].reshape(-1, 8)
    _E2M1.take(nibbles(packed), out=out.reshape(-1, 16), mode="clip")
    grouped = out.reshape(-1, 4, 16)
    grouped *= _ue4m3()[blocks[:, :4]][:, :, None]


def iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    """d * table[q]."""
    _IQ4.take(nibbles(blocks[:, 2:]), out=out, mode="clip")
    out *= half(blocks, 0)


def iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    """8 groups of 32: d * (s - 32) * table[q]; s has 4 bits in l and 2 in h."""
    low = planes(blocks[:, 4:8], width=1, step=4)
    high = (words(blocks, 2, 4, "<u2") >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scales = half(blocks, 0) * ((low | high << 4).astype(np.float32) - 32)
    _IQ4.take(planes(blocks[:, 8:], width=16, step=4), out=out, mode="clip")
    grouped = out.reshape(-1, 8, 32)
    grouped *= scales[:, :, None]


def _digits(packed: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` base-3 digits of [n, k] bytes as [n, count * k], first digits of all bytes first."""
    powers = (3 ** np.arange(count)).astype(np.uint8)[:, None]
    shifted = packed[:, None, :] * powers  # modulo 256
    return (shifted.astype(np.uint16) * 3 >> 8).reshape(len(packed), -1)


@cache
def _ue4m3() -> np.ndarray:
    """Return the float32 value of each byte as an unsigned E4M3 number; 127, its NaN, counts as zero."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, (codes & 7) / 8
    values = np.where(exponent == 0, np.ldexp(fraction, -6), np.ldexp(1 + fraction, exponent - 7))
    values[127] = 0
    return values.astype(np.float32)
