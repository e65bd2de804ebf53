"""The compiled kernels as replacements for ops of `pegboard.ops`: torch's tensors in, torch's tensors out.

Whatever the library does not do (gradients, other dtypes, odd layouts) goes to the function that would have been used without it.
A call costs Python about two microseconds beside the allocation of its output: arguments travel as one packed block.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from pegboard_cpu_kernels import program
from pegboard_cpu_kernels.calls import TYPES, check, huge_pages, pack_norm
from pegboard_cpu_kernels.library import ISAS
from pegboard_cpu_kernels.quantized import int8_linear
from pegboard_cpu_kernels.threads import follow_torch

_MOST_ROWS: Mapping[str, Mapping[torch.dtype, int]] = {
    "portable": {torch.float32: 1, torch.bfloat16: 4, torch.float16: 4},
    "avx2": {torch.float32: 8, torch.bfloat16: 128, torch.float16: 128},
    "avx512": {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64},
    "avx512bf16": {torch.float32: 16, torch.bfloat16: 16, torch.float16: 64},
}
"""Rows up to which a product of ours is faster than torch's, by instruction set and dtype of weights; see docs/benchmarks.md."""

_MOST_ROWS_BESIDE_TILES = 4
"""The same for bfloat16 where the processor has matrix registers (AMX), which torch uses and we do not."""

_PREFIX = struct.Struct("6q").pack
_SIX = struct.Struct("6q").pack
_TEN = struct.Struct("10q").pack
_FIVE = struct.Struct("5q").pack


def replacements(
    library: ctypes.CDLL, dtype: torch.dtype, fallbacks: Mapping[str, Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    """Return the ops that the library computes for models of `dtype`, by name; empty where there are none.

    fallbacks: op name -> function for calls that the library cannot take; one for each op that is replaced.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return {}
    follow_torch(library)
    # An op of another distribution: there when that one is in use.
    further = {"int8_linear": int8_linear(library, fallbacks["int8_linear"])} if "int8_linear" in fallbacks else {}
    return further | {
        "linear": linear(library, fallbacks["linear"]),
        "rms_norm": rms_norm(library, fallbacks["rms_norm"]),
        "offset_rms_norm": rms_norm(library, fallbacks["offset_rms_norm"], offset=1.0),
        "add_rms_norm": add_rms_norm(library, fallbacks["add_rms_norm"]),
        "silu_mul": silu_mul(library, fallbacks["silu_mul"]),
        "gelu_tanh_mul": gelu_tanh_mul(library, fallbacks["gelu_tanh_mul"]),
        "rotary": rotary(library, fallbacks["rotary"]),
    }


def most_rows(library: ctypes.CDLL, dtype: torch.dtype) -> int:
    """Return up to how many rows of x a product with weights of `dtype` is better computed here."""
    rows = _MOST_ROWS[ISAS[library.peg_isa()]][dtype]
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if dtype == torch.bfloat16 and tiles is not None and tiles():
        return min(rows, _MOST_ROWS_BESIDE_TILES)
    return rows


def linear(
    library: ctypes.CDLL, fallback: Callable[..., Tensor], *, most: int | None = None
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return op `linear`. most: rows of x from which on `fallback` is asked; None for what is known to be fast."""
    call = library.peg_packed_linear
    # Weights by identity: whether it is still the same tensor, its address, and what the library is told of it.
    known: dict[int, tuple[weakref.ref[Tensor], int, torch.Size, torch.dtype, int, bytes]] = {}

    def describe(weight: Tensor) -> tuple[weakref.ref[Tensor], int, torch.Size, torch.dtype, int, bytes]:
        n, k = weight.shape
        rows = most
        if weight.device.type != "cpu" or weight.dtype not in TYPES or weight.stride(1) != 1 or not n or not k:
            rows = -1  # every call has more rows than that
        elif rows is None:
            rows = most_rows(library, weight.dtype)
        stride = weight.stride(0) if n > 1 else k
        prefix = _PREFIX(weight.data_ptr(), 0, n, k, stride, TYPES.get(weight.dtype, 0)) if rows >= 0 else b""
        if rows >= 0:
            huge_pages(library, weight)
        key = id(weight)
        ref = weakref.ref(weight, lambda _: known.pop(key, None))
        entry = (ref, weight.data_ptr(), weight.shape, weight.dtype, rows, prefix)
        known[key] = entry
        return entry

    def replaced(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        entry = known.get(id(weight))
        if entry is None or entry[0]() is not weight or entry[1] != weight.data_ptr() or entry[2] != weight.shape:
            entry = describe(weight)
        _, _, (n, k), dtype, rows, prefix = entry
        if x.dim() != 2 or x.dtype is not dtype or ((x.requires_grad or weight.requires_grad) and is_grad_enabled()):
            return fallback(x, weight, bias)
        m, width = x.shape
        if m > rows or width != k:
            return fallback(x, weight, bias)
        stride = k
        if not x.is_contiguous():
            stride, inner = x.stride()
            if inner != 1:
                x, stride = x.contiguous(), k
        address = 0
        if bias is not None:
            if bias.dtype is not dtype or not bias.is_contiguous() or (bias.requires_grad and is_grad_enabled()):
                return fallback(x, weight, bias)
            address = bias.data_ptr()
        out = x.new_empty((m, n))
        block = prefix + _SIX(address, TYPES[dtype], x.data_ptr(), m, stride, out.data_ptr())
        code = call(block)
        if code:
            check(code, "linear")
        if program.recorder is not None:
            program.recorder.note(call, block, x, weight, bias, out)
        return out

    return replaced


def rms_norm(
    library: ctypes.CDLL, fallback: Callable[..., Tensor], *, offset: float = 0.0
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return op `rms_norm`, or with an offset of 1 op `offset_rms_norm`."""
    call = library.peg_packed_rms_norm

    def replaced(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        dtype, size = x.dtype, weight.shape[0]
        kind = TYPES.get(dtype, 3)
        if kind == 3 or weight.dtype is not dtype or ((x.requires_grad or weight.requires_grad) and is_grad_enabled()):
            return fallback(x, weight, eps)
        if x.is_contiguous():
            out = torch.empty_like(x)
            outer, inner, stride = x.numel() // size if size else 0, 1, size
        else:
            # Heads that lie beside others: [T, heads, size], the last two dimensions dense.
            strides = x.stride()
            if x.dim() != 3 or strides[2] != 1 or strides[1] != size:
                return fallback(x, weight, eps)
            outer, inner, stride = x.shape[0], x.shape[1], strides[0]
            out = torch.empty(x.shape, dtype=dtype)
        if x.shape[-1] != size or not weight.is_contiguous():
            return fallback(x, weight, eps)
        packed = pack_norm(weight.data_ptr(), size, eps, offset, kind) + _FIVE(
            x.data_ptr(), outer, inner, stride, out.data_ptr()
        )
        code = call(packed)
        if code:
            check(code, "rms_norm")
        if program.recorder is not None:
            program.recorder.note(call, packed, x, weight, out)
        return out

    return replaced


def add_rms_norm(
    library: ctypes.CDLL, fallback: Callable[..., tuple[Tensor, Tensor]]
) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """Return op `add_rms_norm`."""
    call = library.peg_packed_add_rms_norm

    def replaced(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        dtype, shape = x.dtype, x.shape
        kind = TYPES.get(dtype, 3)
        if (
            kind == 3
            or weight.dtype is not dtype
            or residual.dtype is not dtype
            or residual.shape != shape
            or weight.shape[0] != shape[-1]
            or not (x.is_contiguous() and residual.is_contiguous() and weight.is_contiguous())
            or ((x.requires_grad or residual.requires_grad or weight.requires_grad) and is_grad_enabled())
        ):
            return fallback(x, residual, weight, eps)
        out, total, size = torch.empty_like(x), torch.empty_like(x), shape[-1]
        rows = x.numel() // size if size else 0
        packed = pack_norm(weight.data_ptr(), size, eps, 0.0, kind)
        packed += _FIVE(x.data_ptr(), residual.data_ptr(), rows, out.data_ptr(), total.data_ptr())
        code = call(packed)
        if code:
            check(code, "add_rms_norm")
        if program.recorder is not None:
            program.recorder.note(call, packed, x, residual, weight, out, total)
        return out, total

    return replaced


def silu_mul(library: ctypes.CDLL, fallback: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """Return op `silu_mul`."""
    return _gated(library.peg_packed_silu_mul, fallback, "silu_mul")


def gelu_tanh_mul(library: ctypes.CDLL, fallback: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """Return op `gelu_tanh_mul`."""
    return _gated(library.peg_packed_gelu_tanh_mul, fallback, "gelu_tanh_mul")


def _gated(call: Any, fallback: Callable[..., Tensor], name: str) -> Callable[[Tensor], Tensor]:

    def replaced(gate_up: Tensor) -> Tensor:
        kind = TYPES.get(gate_up.dtype, 3)
        if kind == 3 or gate_up.dim() != 2 or (gate_up.requires_grad and is_grad_enabled()):
            return fallback(gate_up)
        rows, both = gate_up.shape
        stride, inner = gate_up.stride()
        if inner != 1 or both % 2:
            return fallback(gate_up)
        out = gate_up.new_empty((rows, both // 2))
        packed = _SIX(kind, gate_up.data_ptr(), rows, both // 2, stride, out.data_ptr())
        code = call(packed)
        if code:
            check(code, name)
        if program.recorder is not None:
            program.recorder.note(call, packed, gate_up, out)
        return out

    return replaced


def rotary(library: ctypes.CDLL, fallback: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return op `rotary`."""
    call = library.peg_packed_rotary

    def replaced(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        dtype = x.dtype
        kind = TYPES.get(dtype, 3)
        if kind == 3 or x.dim() != 3 or cos.dtype is not dtype or sin.dtype is not dtype:
            return fallback(x, cos, sin)
        (tokens, heads, dim), (stride, head, inner), width = x.shape, x.stride(), cos.shape[-1]
        if (
            (inner != 1 and dim > 1)
            or (head != dim and heads > 1)
            or width > dim
            or width % 2
            or cos.numel() != tokens * width
            or sin.numel() != tokens * width
            or not (cos.is_contiguous() and sin.is_contiguous())
            or ((x.requires_grad or cos.requires_grad or sin.requires_grad) and is_grad_enabled())
        ):
            return fallback(x, cos, sin)
        out = x.new_empty((tokens, heads, dim))
        packed = _TEN(
            kind, x.data_ptr(), tokens, heads, dim, width, stride, cos.data_ptr(), sin.data_ptr(), out.data_ptr()
        )
        code = call(packed)
        if code:
            check(code, "rotary")
        if program.recorder is not None:
            program.recorder.note(call, packed, x, cos, sin, out)
        return out

    return replaced
