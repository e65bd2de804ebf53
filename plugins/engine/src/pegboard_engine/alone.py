"""Small work of torch on the host, without torch's other threads.

OpenMP's threads look for more work for milliseconds after each operation that they shared, on the very processors that the compiled
kernels of the next step need; what they save on a row of logits is some microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MOST = 1 << 19
"""Elements up to which the operations of a step's sampling are over sooner than the threads would go to sleep."""


@contextmanager
def alone(values: Tensor) -> Iterator[None]:
    """Let torch compute with the calling thread alone, where `values` are on the host and few."""
    threads = torch.get_num_threads()
    if threads == 1 or values.device.type != "cpu" or values.numel() > MOST:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
