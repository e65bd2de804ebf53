"""Ops with gradients, and losses over the vocabulary, for models that are trained: forward and backward in one pass each.

Whatever the library does not do goes to the function that would have been used without it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from pegboard_cpu_kernels import ops
from pegboard_cpu_kernels.adamw import adamw_
from pegboard_cpu_kernels.calls import TYPES, check, pack_norm
from pegboard_cpu_kernels.threads import follow_torch

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_PARTS = 64
"""Parts of rows whose gradients by a norm's weight are added up one after another: as many whatever the number of threads."""

_SILU, _GELU_TANH = 0, 1


def replacements(library: ctypes.CDLL, fallbacks: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the ops that the library computes for models that are trained, by name. fallbacks: as for `ops.replacements`.

    An op that is not among them is not registered: what uses it is not loaded.
    """
    follow_torch(library)
    makers: dict[str, Callable[..., Any]] = {
        "adamw_": adamw_,
        "rms_norm": rms_norm,
        "offset_rms_norm": partial(rms_norm, offset=1.0),
        "add_rms_norm": add_rms_norm,
        "silu_mul": silu_mul,
        "gelu_tanh_mul": gelu_tanh_mul,
        "rotary": rotary,
        "logits_sums": logits_sums,
        "logits_slope_": logits_slope_,
        "cross_entropy_": cross_entropy_,
    }
    return {name: make(library, fallbacks[name]) for name, make in makers.items() if name in fallbacks}


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _rows(x: Tensor, size: int) -> tuple[int, int] | None:
    """Return (inner, stride) of rows [..., size] that lie densely, or [T, inner, size] beside others; None for another layout."""
    if x.is_contiguous():
        return 1, size
    if x.dim() == 3 and x.stride(2) == 1 and x.stride(1) == size:
        return x.shape[1], x.stride(0)
    return None


class _RMSNorm(torch.autograd.Function):
    """norm(x), or (norm(x + residual), x + residual). Keeps what it normed."""

    @staticmethod
    def forward(
        ctx: Any, kernel: _Norms, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        ctx.kernel, ctx.eps = kernel, eps
        ctx.set_materialize_grads(False)
        if residual is None:
            out: Tensor = kernel.forward(x, weight, eps)
            ctx.save_for_backward(x, weight)
            return out
        out, total = kernel.forward(x, residual, weight, eps)
        ctx.save_for_backward(total, weight)
        return out, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, of_total = (*grads, None)[:2]
        if grad is None:
            return None, of_total, of_total if ctx.needs_input_grad[2] else None, None, None
        d_x, d_weight = ctx.kernel.backward(grad, of_total, x, weight, ctx.eps, ctx.needs_input_grad[3])
        return None, d_x, d_x if ctx.needs_input_grad[2] else None, d_weight, None


class _Norms:
    """One of the norms. forward: the op without gradients. fallback: for what the library does not take."""

    def __init__(self, library: ctypes.CDLL, forward: Callable[..., Any], fallback: Callable[..., Any], offset: float):
        self.forward, self._fallback, self._offset = forward, fallback, offset
        self._call = library.peg_rms_norm_backward

    def one(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Op `rms_norm` or `offset_rms_norm`."""
        if not is_grad_enabled() or not (x.requires_grad or weight.requires_grad):
            return self.forward(x, weight, eps)
        if not self._taken(x, weight) or _rows(x, x.shape[-1]) is None:
            return self._fallback(x, weight, eps)
        return _RMSNorm.apply(self, x, None, weight, eps)

    def added(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Op `add_rms_norm`."""
        if not is_grad_enabled() or not (x.requires_grad or residual.requires_grad or weight.requires_grad):
            return self.forward(x, residual, weight, eps)
        alike = residual.dtype is x.dtype and residual.shape == x.shape
        if not alike or not self._taken(x, weight) or not (x.is_contiguous() and residual.is_contiguous()):
            return self._fallback(x, residual, weight, eps)
        return _RMSNorm.apply(self, x, residual, weight, eps)

    @staticmethod
    def _taken(x: Tensor, weight: Tensor) -> bool:
        return x.dtype in _FLOATS and weight.dtype is x.dtype and weight.is_contiguous() and x.numel() > 0

    def backward(
        self, grad: Tensor, of_total: Tensor | None, x: Tensor, weight: Tensor, eps: float, needs_weight: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients by x and by the weight."""
        size = weight.shape[0]
        rows = x.numel() // size
        layout = _rows(x, size)
        assert layout is not None
        grad, of_total = grad.contiguous(), None if of_total is None else of_total.contiguous()
        d_x = torch.empty(x.shape, dtype=x.dtype)
        parts = torch.empty(_PARTS, size) if needs_weight else None
        norm = pack_norm(weight.data_ptr(), size, eps, self._offset, TYPES[x.dtype])
        code = self._call(
            norm,
            *map(_pointer, (grad, of_total, x)),
            *map(_long, (rows, *layout)),
            *map(_pointer, (d_x, parts)),
            _long(_PARTS),
        )
        if code:
            check(code, "the backward pass of a norm")
        return d_x, None if parts is None else parts.sum(0).to(weight.dtype)


def rms_norm(library: ctypes.CDLL, fallback: Callable[..., Tensor], *, offset: float = 0.0) -> Callable[..., Tensor]:
    """Return op `rms_norm`, or `offset_rms_norm`, with gradients."""
    return _Norms(library, ops.rms_norm(library, fallback, offset=offset), fallback, offset).one


def add_rms_norm(library: ctypes.CDLL, fallback: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return op `add_rms_norm` with gradients."""
    return _Norms(library, ops.add_rms_norm(library, fallback), fallback, 0.0).added


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Callable[[Tensor], Tensor], call: Any, activation: int, gate_up: Tensor) -> Tensor:
        ctx.call, ctx.activation = call, activation
        ctx.save_for_backward(gate_up)
        return forward(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor]:
        (gate_up,) = ctx.saved_tensors
        grad = grads[0].contiguous()
        out = torch.empty(gate_up.shape, dtype=gate_up.dtype)
        rows, both = gate_up.shape
        code = ctx.call(
            ctypes.c_int(ctx.activation),
            ctypes.c_int(TYPES[gate_up.dtype]),
            *map(_pointer, (grad, gate_up)),
            *map(_long, (rows, both // 2, gate_up.stride(0))),
            _pointer(out),
        )
        if code:
            check(code, "the backward pass of a gate")
        return None, None, None, out


def _gated(
    library: ctypes.CDLL, forward: Callable[[Tensor], Tensor], fallback: Callable[..., Tensor], activation: int
) -> Callable[[Tensor], Tensor]:
    call = library.peg_gated_backward

    def replaced(gate_up: Tensor) -> Tensor:
        if not (gate_up.requires_grad and is_grad_enabled()):
            return forward(gate_up)
        if gate_up.dtype not in _FLOATS or gate_up.dim() != 2 or gate_up.stride(1) != 1 or gate_up.shape[1] % 2:
            return fallback(gate_up)
        return _Gated.apply(forward, call, activation, gate_up)

    return replaced


def silu_mul(library: ctypes.CDLL, fallback: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """Return op `silu_mul` with gradients."""
    return _gated(library, ops.silu_mul(library, fallback), fallback, _SILU)


def gelu_tanh_mul(library: ctypes.CDLL, fallback: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """Return op `gelu_tanh_mul` with gradients."""
    return _gated(library, ops.gelu_tanh_mul(library, fallback), fallback, _GELU_TANH)


class _Rotary(torch.autograd.Function):
    """A rotation's transpose is the rotation the other way: the same with the halves of sin exchanged."""

    @staticmethod
    def forward(ctx: Any, forward: Callable[..., Tensor], x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.forward_of = forward
        ctx.save_for_backward(cos, sin)
        return forward(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return None, ctx.forward_of(grads[0].contiguous(), cos, sin.roll(sin.shape[-1] // 2, -1)), None, None


def rotary(library: ctypes.CDLL, fallback: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return op `rotary` with gradients; of the angles it has none to give, and leaves those who want them to the fallback."""
    forward = ops.rotary(library, fallback)

    def replaced(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if not (x.requires_grad and is_grad_enabled()):
            return forward(x, cos, sin)
        if cos.requires_grad or sin.requires_grad or x.dtype not in _FLOATS or cos.dtype is not x.dtype:
            return fallback(x, cos, sin)
        return _Rotary.apply(forward, x, cos, sin)

    return replaced


def _plain(logits: Tensor, targets: Tensor, softcap: float | None) -> bool:
    """Whether the library takes such logits."""
    return (
        softcap is None
        and logits.dtype in _FLOATS
        and logits.dim() == 2
        and logits.shape[1] > 0
        and logits.stride(1) == 1
        and targets.is_contiguous()
        and targets.dtype is torch.int64
        and logits.device.type == targets.device.type == "cpu"
    )


def _called(call: Any, logits: Tensor, targets: Tensor, *more: Tensor | None) -> None:
    rows, columns = logits.shape
    code = call(
        ctypes.c_int(TYPES[logits.dtype]),
        _pointer(logits),
        *map(_long, (rows, columns, logits.stride(0))),
        *map(_pointer, (targets, *more)),
    )
    if code:
        check(code, "a loss over the vocabulary")


def logits_sums(library: ctypes.CDLL, fallback: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return op `logits_sums`."""

    def replaced(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
        if not _plain(logits, targets, softcap):
            return fallback(logits, targets, softcap)
        norm, picked = (torch.empty(logits.shape[0]) for _ in range(2))
        _called(library.peg_logits_sums, logits, targets, norm, picked)
        return norm, picked

    return replaced


def logits_slope_(library: ctypes.CDLL, fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return op `logits_slope_`."""

    def replaced(
        logits: Tensor, targets: Tensor, norm: Tensor, factor: Tensor | None = None, softcap: float | None = None
    ) -> Tensor:
        if not _plain(logits, targets, softcap):
            return fallback(logits, targets, norm, factor, softcap)
        norm, factor = (None if x is None else x.float().contiguous() for x in (norm, factor))  # type: ignore[assignment]
        _called(library.peg_logits_slope, logits, targets, norm, factor)
        return logits

    return replaced


def cross_entropy_(library: ctypes.CDLL, fallback: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return op `cross_entropy_`."""

    def replaced(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
        if not _plain(logits, targets, softcap):
            return fallback(logits, targets, softcap)
        logps = torch.empty(logits.shape[0])
        _called(library.peg_cross_entropy, logits, targets, logps)
        return logps, logits

    return replaced
