"""Weights from files to a device: several threads read parts into pinned memory while earlier parts are on their way."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 16 << 20
"""Bytes that are read and copied at once: enough for a disk, little enough that the first copy starts soon."""
BUFFERS = 6
READERS = 4


class Readable(Protocol):
    """A tensor whose bytes can be read in parts, from several threads at once."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read_bytes(self, start: int, out: Tensor) -> None:
        """Read len(out) bytes from byte `start` of the tensor's data on into `out`, uint8 on the host."""


@dataclass(slots=True)
class _Part:
    """Bytes that a reader is filling `buffer` with, and where on the device they go."""

    read: Future[None]
    buffer: Tensor
    target: Tensor
    then: tuple[Tensor, Tensor] | None


class Pump:
    """Copies tensors to a device, in the order in which they are put. Use as a context: leaving it waits for what is under way.

    A tensor of another dtype than its place is converted on the device. chunk: bytes at once. Memory on the host: `BUFFERS` chunks.
    """

    def __init__(self, device: torch.device, *, pinned: bool = True, chunk: int = CHUNK) -> None:
        self._device, self._chunk = device, chunk
        self._block = torch.empty(BUFFERS, chunk, dtype=torch.uint8, pin_memory=pinned)
        self._free: deque[tuple[Tensor, torch.Event | None]] = deque((buffer, None) for buffer in self._block)
        self._reading: deque[_Part] = deque()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="weights")

    def put(self, source: Readable, target: Tensor) -> None:
        """Begin to copy a tensor into `target`, a contiguous one of its shape. Raises what reading an earlier one raised."""
        if target.shape != torch.Size(source.shape) or not target.is_contiguous():
            raise ValueError(f"{source.name} is {source.shape}: {tuple(target.shape)} with strides {target.stride()}")
        same = target.dtype == source.dtype
        place = target if same else torch.empty(source.shape, dtype=source.dtype, device=target.device)
        raw = place.detach().view(-1).view(torch.uint8) if place.numel() else place.new_empty(0, dtype=torch.uint8)
        size = prod(source.shape) * source.dtype.itemsize
        for start in range(0, size, self._chunk):
            stop = min(start + self._chunk, size)
            then = (target, place) if stop == size and not same else None
            while not self._free:
                self._send()
            buffer, copied = self._free.popleft()
            if copied is not None:
                copied.synchronize()
            buffer = buffer[: stop - start]
            read = self._readers.submit(source.read_bytes, start, buffer)
            self._reading.append(_Part(read, buffer, raw[start:stop], then))

    def _send(self) -> None:
        """Wait for the part that is being read the longest, and copy it."""
        part = self._reading.popleft()
        part.read.result()
        part.target.copy_(part.buffer, non_blocking=True)
        if part.then is not None:
            with torch.no_grad():
                part.then[0].copy_(part.then[1])
        copied = None
        if self._device.type != "cpu":
            copied = torch.Event(self._device)
            copied.record()
        index = (part.buffer.data_ptr() - self._block.data_ptr()) // self._chunk
        self._free.append((self._block[index], copied))

    def __enter__(self) -> Pump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._reading and error is None:
                self._send()
            for _, copied in self._free:
                if copied is not None:
                    copied.synchronize()
        finally:
            self._readers.shutdown(cancel_futures=True)
