"""Working memory of recorded programs, which those that are never run at the same time share."""

from __future__ import annotations

import ctypes
import weakref
from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGN = 64


class Arena:
    """Memory whose pieces are used again as soon as the tensors in them are gone.

    A program repeats the order in which it was recorded, so that what was free then is free in every replay. num_bytes: held in all.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._free: list[tuple[int, int, bytearray]] = []  # by size; the second keeps equals in order
        self._made = 0
        self._leased: set[int] = set()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a dense tensor of no particular content."""
        count = 1
        for length in shape:
            count *= length
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        lease = self._lease(count * dtype.itemsize)
        return torch.frombuffer(lease, dtype=dtype, count=count).view(tuple(shape))

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory lies here."""
        return tensor.untyped_storage().data_ptr() in self._leased

    def _lease(self, size: int) -> ctypes.Array[ctypes.c_char]:
        # Sizes in steps of two, so that steps of a few sequences more or less fit each other's memory.
        rounded = max(_ALIGN, 1 << (size - 1).bit_length())
        place = bisect_left(self._free, (rounded,))
        if place < len(self._free):
            entry = self._free.pop(place)
        else:
            entry = (rounded, self._made, bytearray(rounded + _ALIGN))
            self._made += 1
            self.num_bytes += rounded
        memory = entry[2]
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        shift = -start % _ALIGN
        lease = (ctypes.c_char * rounded).from_buffer(memory, shift)
        self._leased.add(start + shift)
        # torch holds the lease until the last view of the tensor is gone.
        weakref.finalize(lease, self._return, start + shift, entry).atexit = False
        return lease

    def _return(self, address: int, entry: tuple[int, int, bytearray]) -> None:
        self._leased.discard(address)
        insort(self._free, entry)
