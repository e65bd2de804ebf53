"""Memory of the host as the operating system gives it: zeroed, and taken when it is first written."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 1 << 21
"""Bytes of a huge page on most systems."""


def host_zeros(shape: Sequence[int], dtype: torch.dtype, *, huge: bool = False) -> Tensor:
    """Return a tensor of zeros whose pages are not there before they are used.

    huge: on huge pages, where the system has them: for what is read from end to end again and again, since looking up small pages
    takes as long as reading them.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(tuple(shape), dtype=dtype)
    spare = HUGE if huge else 0
    if hasattr(mmap, "MAP_PRIVATE"):
        region = mmap.mmap(-1, size + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        region = mmap.mmap(-1, size + spare)
    start = 0
    if huge:
        start = -torch.frombuffer(region, dtype=torch.uint8, count=1).data_ptr() % HUGE
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                region.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without them
    count = size // dtype.itemsize
    return torch.frombuffer(region, dtype=dtype, count=count, offset=start).view(tuple(shape))
