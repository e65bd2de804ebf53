"""What a storage type is: how many values a block holds, how many bytes it takes, and how it is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Decoder = Callable[[np.ndarray, np.ndarray], None]
"""decode(blocks [n, block_bytes] uint8, out [n, block_size] float32): fill `out`."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """One storage type.

    number: as in the file. block_size: values of a block. block_bytes: bytes of a block.
    native: for types that need no decoding, numpy's dtype of the stored value; None for quantised types.
    dtype: name of torch's dtype that the values are given in.
    decode: for quantised types, the decoder.
    """

    number: int
    name: str
    block_size: int
    block_bytes: int
    native: str | None = None
    dtype: str = "float32"
    decode: Decoder | None = None
