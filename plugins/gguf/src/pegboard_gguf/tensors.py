"""Tensors that are still in the file, decoded a few rows at a time."""

from __future__ import annotations

import mmap
from math import prod

import numpy as np
import torch
from torch import Tensor

from pegboard_gguf.blocks import BlockType
from pegboard_gguf.container import TensorInfo

CHUNK_VALUES = 1 << 17
"""Values decoded at once: large enough to amortise numpy's calls, small enough for the temporaries to stay in cache."""


class GgufTensor:
    """A lazy tensor under its Hugging Face name.

    dtype: what `load` gives; the stored dtype of unquantised types, float32 for all quantised ones.
    order: None when rows are stored as they are wanted; else [shape[0]] int64, the stored row of each wanted row.
    offset: what stored values have more than wanted ones.
    """

    def __init__(
        self, name: str, info: TensorInfo, buffer: memoryview, order: np.ndarray | None = None, offset: float = 0.0
    ) -> None:
        self.name, self.shape = name, info.shape
        self.dtype: torch.dtype = getattr(torch, info.type.dtype)
        self._info, self._buffer, self._order, self._offset = info, buffer, order, offset
        self._row_values = prod(info.shape[1:])

    def load(self) -> Tensor:
        """Return the whole tensor: the peak is the tensor and one chunk."""
        return self._gather(0, self.shape[0])

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows start … stop - 1. Raises IndexError outside the tensor."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start}:{stop} of {self.name}, which has {self.shape[0]}")
        return self._gather(start, stop)

    def _gather(self, start: int, stop: int) -> Tensor:
        out = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        if stop == start:
            return out
        target = _as_numpy(out).reshape(stop - start, self._row_values)
        if self._order is None:
            self._decode_rows(start, target)
        else:
            self._decode_permuted(self._order[start:stop], target)
        self._forget()
        return out.sub_(self._offset) if self._offset else out

    def _decode_permuted(self, stored: np.ndarray, target: np.ndarray) -> None:
        """Decode the stored rows between the first and the last that are wanted, a chunk at a time, and put each
        in its place.
        """
        wanted = np.argsort(stored, kind="stable")
        ascending = stored[wanted]
        step = max(1, CHUNK_VALUES // self._row_values)
        for first in range(int(ascending[0]), int(ascending[-1]) + 1, step):
            low, high = np.searchsorted(ascending, (first, first + step))
            if low == high:
                continue
            chunk = np.empty((int(ascending[high - 1]) - first + 1, self._row_values), target.dtype)
            self._decode_rows(first, chunk)
            target[wanted[low:high]] = chunk[ascending[low:high] - first]

    def _decode_rows(self, start: int, target: np.ndarray) -> None:
        """Fill target [rows, row values] from stored row `start` on."""
        kind = self._info.type
        flat = target.reshape(-1)
        if flat.size % kind.block_size or start * self._row_values % kind.block_size:
            # Rows of a one-dimensional quantised tensor are single values: decode the blocks around them.
            self._decode_around(start, flat)
            return
        step = max(1, CHUNK_VALUES // kind.block_size) * kind.block_size
        begin = self._info.offset + start * self._row_values // kind.block_size * kind.block_bytes
        for first in range(0, flat.size, step):
            part = flat[first : first + step]
            blocks = part.size // kind.block_size
            _decode(kind, self._buffer, begin + first // kind.block_size * kind.block_bytes, blocks, part)

    def _decode_around(self, start: int, flat: np.ndarray) -> None:
        kind = self._info.type
        first, last = start // kind.block_size, -(-(start + flat.size) // kind.block_size)
        whole = np.empty((last - first) * kind.block_size, flat.dtype)
        _decode(kind, self._buffer, self._info.offset + first * kind.block_bytes, last - first, whole)
        skipped = start - first * kind.block_size
        flat[:] = whole[skipped : skipped + flat.size]

    def _forget(self) -> None:
        """Let go of the mapped pages, which would else count as memory of this process (they stay in the page
        cache).
        """
        mapped = self._buffer.obj
        if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
            begin = self._info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, begin, self._info.offset + self._info.nbytes - begin)


def _decode(kind: BlockType, buffer: memoryview, offset: int, blocks: int, out: np.ndarray) -> None:
    """Decode `blocks` blocks at byte `offset` into out [blocks * block_size]."""
    if kind.decode is None:
        out[:] = np.frombuffer(buffer, kind.native, blocks, offset)
        return
    stored = np.frombuffer(buffer, np.uint8, blocks * kind.block_bytes, offset)
    with np.errstate(all="ignore"):  # damaged scales give infinities, which are the file's
        kind.decode(stored.reshape(blocks, kind.block_bytes), out.reshape(blocks, kind.block_size))


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """Return a numpy view of the tensor's storage; numpy has no bfloat16, so those are seen as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
