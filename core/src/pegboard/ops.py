"""The operations that a platform may replace: names, what they compute, and a torch implementation of each.

A model's layers call `self.kernels.NAME(...)`. The table is made once, when the model is built, from these implementations and
whatever `Platform.kernels(phase)` offers instead; afterwards nothing looks anything up. A distribution that brings an op of its own
registers it, with its implementation, in the module that holds the layer using it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.errors import PluginError, nearest


@dataclass(frozen=True, slots=True)
class Op:
    """An operation. schema: its signature with shapes, for people and for conformance suites; function: its torch implementation.
    differentiable: False for a part of functions that write their own backward pass; it may write to its arguments.
    """

    name: str
    schema: str
    function: Callable[..., Any]
    differentiable: bool = True


class KernelTable(SimpleNamespace):
    """Op name -> function, as attributes."""


_OPS: dict[str, Op] = {}


def register(
    name: str, schema: str, *, differentiable: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as op `name`. Raises ValueError when the name is taken by another function."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        known = _OPS.get(name)
        if known is not None and known.function is not function:
            raise ValueError(f"op {name!r} is registered twice: {known.function.__module__} and {function.__module__}")
        _OPS[name] = Op(name, schema, function, differentiable)
        return function

    return add


def registered() -> Mapping[str, Op]:
    """Return all ops by name."""
    return dict(_OPS)


def replaced(table: KernelTable, name: str) -> bool:
    """Return whether a platform computes op `name` of a model's table: some ops join two others, which are as good on their own without."""
    return getattr(table, name) is not _OPS[name].function


def kernel_table(
    replacements: Mapping[str, Callable[..., Any]] | None = None, *, owner: str = "the platform"
) -> KernelTable:
    """Return the table of a model. Raises PluginError when `owner` replaces an op that does not exist."""
    replacements = replacements or {}
    for name in replacements:
        if name not in _OPS:
            raise PluginError(
                f"{owner} replaces the op {name!r}, which nothing registers{nearest(name, _OPS)}",
                fix="compare the versions of that plugin and of pegboard",
            )
    return KernelTable(**{name: replacements.get(name, op.function) for name, op in _OPS.items()})


@register("linear", "(x [T, K], weight [N, K], bias [N] | None) -> [T, N]")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A replacement that leaves to torch what torch does well has the attribute `beside_torch`, true; others of torch's functions do then
    as well as this one. One without it says that torch's products in half precision are slow on its device.
    """
    return F.linear(x, weight, bias)


@register("embedding", "(ids [T] int64, weight [V, H]) -> [T, H]")
def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(ids, weight)


@register("rms_norm", "(x [..., H], weight [H], eps) -> [..., H]; the mean of squares in float32 (arXiv:1910.07467)")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


@register("add_rms_norm", "(x [T, H], residual [T, H], weight [H], eps) -> (norm(x + residual), x + residual)")
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, eps), total


@register(
    "rotary",
    "(x [T, h, D], cos [T, 1, R], sin [T, 1, R] with its first half negated) -> [T, h, D], the first R of D turned",
)
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the split-half layout (arXiv:2104.09864): x * cos + swap_halves(x) * sin."""
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(width // 2, -1), sin)
    turned, kept = x[..., :width], x[..., width:]
    return torch.cat((torch.addcmul(turned * cos, turned.roll(width // 2, -1), sin), kept), -1)


@register(
    "offset_rms_norm",
    "(x [..., H], weight [H], eps) -> [..., H]; rms_norm with factors of 1 + weight, in float32 until the end",
)
def offset_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    # 1 + weight in half precision would keep the last few bits of a small weight from counting.
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide) + 1, eps).to(x.dtype)


_Activation = Callable[[Tensor], Tensor]


class _Gated(torch.autograd.Function):
    """activation(gate) * up that keeps only its input for the backward pass. backward: (gradient, gate) -> the gate's gradient."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: _Activation, backward: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation, ctx.backward_of = activation, backward
        gate, up = gate_up.chunk(2, -1)
        return activation(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, -1)
        torch.mul(grad, ctx.activation(gate), out=d_up)
        d_gate.copy_(ctx.backward_of(grad * up, gate))
        return out, None, None


def _gated(gate_up: Tensor, activation: _Activation, backward: Callable[..., Tensor]) -> Tensor:
    if torch.is_grad_enabled() and gate_up.requires_grad:
        result: Tensor = _Gated.apply(gate_up, activation, backward)  # type: ignore[no-untyped-call]
        return result
    gate, up = gate_up.chunk(2, -1)
    return activation(gate).mul_(up)


@register("silu_mul", "(gate_up [T, 2 I], gate first) -> silu(gate) * up [T, I]")
def silu_mul(gate_up: Tensor) -> Tensor:
    return _gated(gate_up, F.silu, torch.ops.aten.silu_backward)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_backward(grad: Tensor, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    return out


@register(
    "gelu_tanh_mul",
    "(gate_up [T, 2 I], gate first) -> gelu(gate) * up [T, I], GELU by its tanh approximation (arXiv:1606.08415)",
)
def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    return _gated(gate_up, _gelu_tanh, _gelu_tanh_backward)


@register(
    "norm_linear",
    "(x [T, H], residual [T, H], scales [H], eps, offset: bool, weight [N, H], bias [N] | None) -> "
    "(norm(x + residual) @ weight^T + bias [T, N], x + residual); the norm as rms_norm, or as offset_rms_norm",
)
def norm_linear(
    x: Tensor, residual: Tensor, scales: Tensor, eps: float, offset: bool, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    if offset:
        total = x + residual
        return F.linear(offset_rms_norm(total, scales, eps), weight, bias), total
    normed, total = add_rms_norm(x, residual, scales, eps)
    return F.linear(normed, weight, bias), total


@register(
    "gated_linear",
    "(gate_up [T, 2 I], weight [N, I], bias [N] | None, activation) -> activation(gate) * up @ weight^T + bias [T, N]; silu or gelu_tanh",
)
def gated_linear(gate_up: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return F.linear((silu_mul if activation == "silu" else gelu_tanh_mul)(gate_up), weight, bias)
