"""Memory that two processes map, and where messages lie in it."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Sequence

import numpy as np

ALIGN = 64


def aligned(size: int) -> int:
    """Return `size` rounded up to whole cache lines."""
    return -(-size // ALIGN) * ALIGN


class Segment:
    """Anonymous memory that has no name anywhere: it is gone when the last process that maps it is, however that ends.

    size: in bytes. Arrays made from it keep it mapped.
    """

    def __init__(self, descriptor: int) -> None:
        """Map what a file descriptor stands for; the descriptor stays the caller's."""
        self.size = os.fstat(descriptor).st_size
        self._memory = mmap.mmap(descriptor, self.size)
        self._octets = np.frombuffer(self._memory, np.uint8)

    def write(self, array: np.ndarray, offset: int) -> None:
        """Copy an array to `offset`, where it has room."""
        self._octets[offset : offset + array.nbytes] = np.frombuffer(np.ascontiguousarray(array), np.uint8)

    def view(self, dtype: np.dtype, shape: Sequence[int], offset: int) -> np.ndarray:
        """Return an array that lies at `offset`. Raises ValueError when it does not lie inside."""
        count = math.prod(shape)
        if count < 0:
            raise ValueError(f"an array of shape {shape}")
        return np.frombuffer(self._memory, dtype, count, offset).reshape(shape)


def create(size: int) -> tuple[Segment, int]:
    """Return a new segment of `size` bytes, and a descriptor that others map; memory comes as it is written. Raises OSError."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pegboard")
    else:
        with tempfile.TemporaryFile(prefix="pegboard-") as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        return Segment(descriptor), descriptor
    except BaseException:
        os.close(descriptor)
        raise


class Ring:
    """Places of blocks in a segment of `capacity` bytes, taken and released in the same order.

    Free is what lies after the newest block up to the oldest, around the end; a block lies in one piece.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._blocks)

    def take(self, size: int) -> int | None:
        """Return the offset of a new block of `size` bytes; None when there is no room."""
        start = self._place(size)
        if start is not None:
            self._blocks.append((start, start + size))
        return start

    def release(self, count: int) -> None:
        """Give back the oldest `count` blocks."""
        for _ in range(count):
            self._blocks.popleft()

    def _place(self, size: int) -> int | None:
        if not self._blocks:
            return 0 if size <= self.capacity else None
        oldest, newest = self._blocks[0][0], self._blocks[-1][1]
        if self._blocks[-1][0] < oldest:  # it has gone around the end
            return newest if newest + size <= oldest else None
        if newest + size <= self.capacity:
            return newest
        return 0 if size <= oldest else None
