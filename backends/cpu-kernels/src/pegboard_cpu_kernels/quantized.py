"""The product with int8 weights as a replacement for op `int8_linear`, which the distribution `pegboard-int8` registers."""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, is_grad_enabled

from pegboard_cpu_kernels import program
from pegboard_cpu_kernels.calls import TYPES, check, huge_pages
from pegboard_cpu_kernels.library import ISAS

_MOST_ROWS: Mapping[str, int] = {"portable": 8, "avx2": 256, "avx512": 64, "avx512bf16": 64}
"""Rows up to which widening weights by ourselves beats torch's product with widened ones, by instruction set."""

_PREFIX = struct.Struct("6q").pack
_SIX = struct.Struct("6q").pack

_Known = tuple["weakref.ref[Tensor]", int, int, torch.Size, bytes]
"""A weight, its address and its scales', its shape, and what the library is told of it."""


def int8_linear(
    library: ctypes.CDLL, fallback: Callable[..., Tensor], *, most: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """Return op `int8_linear`. most: rows of x from which on `fallback` is asked; None for what is known to be fast."""
    call = library.peg_packed_linear
    known: dict[int, _Known] = {}
    rows = _MOST_ROWS[ISAS[library.peg_isa()]] if most is None else most

    def describe(weight: Tensor, scales: Tensor) -> _Known | None:
        n, k = weight.shape
        for tensor, dtype in ((weight, torch.int8), (scales, torch.float32)):
            if tensor.device.type != "cpu" or tensor.dtype != dtype or (tensor.numel() > 1 and tensor.stride(-1) != 1):
                return None
        if scales.shape != (n,) or not n or not k:
            return None
        huge_pages(library, weight)
        stride = weight.stride(0) if n > 1 else k
        prefix = _PREFIX(weight.data_ptr(), scales.data_ptr(), n, k, stride, TYPES[torch.int8])
        key = id(weight)
        ref = weakref.ref(weight, lambda _: known.pop(key, None))
        known[key] = (ref, weight.data_ptr(), scales.data_ptr(), weight.shape, prefix)
        return known[key]

    def replaced(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
        entry = known.get(id(weight))
        if (
            entry is None
            or entry[0]() is not weight
            or entry[1] != weight.data_ptr()
            or entry[2] != scales.data_ptr()
            or entry[3] != weight.shape
        ):
            entry = describe(weight, scales)
        kind = TYPES.get(x.dtype, 3)
        if entry is None or kind == 3 or x.dim() != 2 or (x.requires_grad and is_grad_enabled()):
            return fallback(x, weight, scales, bias)
        (m, width), (n, k) = x.shape, entry[3]
        if m > rows or width != k:
            return fallback(x, weight, scales, bias)
        stride = k
        if not x.is_contiguous():
            stride, inner = x.stride()
            if inner != 1:
                x, stride = x.contiguous(), k
        address = 0
        if bias is not None:
            if bias.dtype is not x.dtype or not bias.is_contiguous() or (bias.requires_grad and is_grad_enabled()):
                return fallback(x, weight, scales, bias)
            address = bias.data_ptr()
        out = x.new_empty((m, n))
        block = entry[4] + _SIX(address, kind, x.data_ptr(), m, stride, out.data_ptr())
        code = call(block)
        if code:
            check(code, "int8_linear")
        if program.recorder is not None:
            program.recorder.note(call, block, x, weight, scales, bias, out)
        return out

    return replaced
