"""Replacements for ops: compiled ones where they are installed; else torch's, arranged for processors without fast bfloat16 products."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.interfaces.platform import Phase
from pegboard.ops import registered

# Up to here torch's half-precision product, which streams the weights once a row, beats widening them to float32 first.
_FEW_ROWS = 4


def library() -> ctypes.CDLL | None:
    """Return the compiled library: None where pegboard-cpu-kernels is absent, unusable or switched off."""
    try:
        from pegboard_cpu_kernels.library import find
    except ImportError:
        return None
    return find().library


def compiled(
    dtype: torch.dtype, others: Mapping[str, Callable[..., Any]], phase: Phase = "decode"
) -> dict[str, Callable[..., Any]]:
    """Return the compiled replacements for models of `dtype` in a phase; empty where there is no library.

    others: replacements of ours, which are asked where a compiled one does not apply.
    """
    found = library()
    if found is None:
        return {}
    from pegboard_cpu_kernels import ops, training

    functions = {name: op.function for name, op in registered().items()}
    if phase == "train":
        return training.replacements(found, functions | dict(others))
    return ops.replacements(found, dtype, functions | dict(others))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[T, K] x [N, K] -> [T, N]: products of many rows in float32, rounded once at the end.

    A gradient keeps x and weight as they are, never their widened copies.
    """
    if x.dtype == torch.float32 or (x.shape[0] <= _FEW_ROWS and not x.requires_grad):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        out: Tensor = _WideLinear.apply(x, weight, bias)
        return out
    return _wide(x, weight, bias)


def _wide(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[N, K] + [M, N]^T x [M, K]: the product in the dtype of the sum or in float32, whichever is wider."""
    wide = torch.promote_types(total.dtype, torch.float32)
    if total.dtype == wide:
        return total.addmm_(a.to(wide).t(), b.to(wide))
    return total.add_(torch.mm(a.to(wide).t(), b.to(wide)))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., H] -> [..., H]: as torch's, which takes eight small kernels a call; one row, a decode step's, takes three."""
    if x.numel() != weight.numel() or x.requires_grad:
        return F.rms_norm(x, weight.shape, weight, eps)
    norm = torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)).item()
    return x.mul((norm * norm / weight.numel() + eps) ** -0.5).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """[T, H] each -> (norm(x + residual), x + residual)."""
    total = x + residual
    return rms_norm(total, weight, eps), total


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)
        return _wide(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad = grads[0].float()
        x, weight = ctx.saved_tensors
        d_x = None if weight is None else torch.mm(grad, weight.float()).to(grads[0].dtype)
        d_weight = None if x is None else torch.mm(grad.t(), x.float()).to(grads[0].dtype)
        d_bias = grad.sum(0).to(grads[0].dtype) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias
