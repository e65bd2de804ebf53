"""What all calls of the library share."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
"""Element types by their number in C."""

pack_norm = struct.Struct("Pq2fi4x").pack
"""Return `peg_norm` of elementwise.h, of: weight's address, its size, eps, offset, element type."""

_HUGE = 1 << 18
"""Bytes of weights from which on huge pages are asked for."""


def check(code: int, what: str) -> None:
    """Raise when a function of the library refused."""
    if code == -2:
        raise MemoryError(f"no memory for the working space of {what}")
    raise RuntimeError(f"{what} was given a type or a size that it does not know")


def huge_pages(library: ctypes.CDLL, weight: Tensor) -> None:
    """Ask for the memory of a matrix [n, k] to be put on huge pages, when it is large; its contents stay."""
    n, k = weight.shape
    size = ((n - 1) * weight.stride(0) + k) * weight.itemsize
    if size >= _HUGE:
        library.peg_huge_pages(ctypes.c_void_p(weight.data_ptr()), ctypes.c_int64(size))
