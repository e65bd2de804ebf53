"""The low-rank update as one differentiable step around the base product, which it adds to in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pegboard.ops import linear as reference_linear


class _Ahead:
    """What the backward pass of the update leaves for that of the input, which comes after the base's: d_inner and all A."""

    def __init__(self) -> None:
        self.left: tuple[Tensor, Tensor] | None = None


class _Fork(torch.autograd.Function):
    """x for the base product. Its gradient, fresh from that product, gets the update's share in place: no second tensor of x's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ahead: _Ahead, linear: Callable[..., Tensor]) -> Tensor:
        ctx.ahead, ctx.linear = ahead, linear
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        if ctx.ahead.left is not None:
            d_inner, down = ctx.ahead.left
            ctx.ahead.left = None
            grad = grad if grad.is_contiguous() else grad.contiguous()
            _add_product(grad, d_inner, down.t(), 1.0, ctx.linear)
        return grad, None, None


class _AddLowRank(torch.autograd.Function):
    """out[:, start_i : start_i + n_i] += scaling_i * (x A_i^T) B_i^T for several (A_i, B_i) that read the same x.

    One product serves all A_i. Kept for the backward pass: x (shared with whoever else keeps it)
    and x A^T, [T, sum of ranks].
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        ahead: _Ahead | None,
        linear: Callable[..., Tensor],
        starts: Sequence[int],
        scalings: Sequence[float],
        *factors: Tensor,
    ) -> Tensor:
        count = len(starts)
        downs, ups = factors[:count], factors[count:]
        down = _stack(downs, x.dtype)
        inner = linear(x, down, None)
        for start, scaling, up, part in zip(starts, scalings, ups, _split(inner, downs), strict=True):
            _add_product(out[:, start : start + up.shape[0]], part, up.to(x.dtype), scaling, linear)
        ctx.save_for_backward(x, inner, *factors)
        ctx.ahead, ctx.linear, ctx.starts, ctx.scalings = ahead, linear, starts, scalings
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        x, inner, *factors = ctx.saved_tensors
        linear, starts, scalings = ctx.linear, ctx.starts, ctx.scalings
        count = len(starts)
        downs, ups = factors[:count], factors[count:]
        d_inner = torch.empty_like(inner)
        d_ups: list[Tensor | None] = []
        parts = zip(
            starts,
            scalings,
            ups,
            _split(inner, downs),
            _split(d_inner, downs),
            ctx.needs_input_grad[6 + count :],
            strict=True,
        )
        for start, scaling, up, part, d_part, needed in parts:
            part_grad = grad[:, start : start + up.shape[0]]
            d_part.copy_(linear(part_grad, up.to(grad.dtype).t(), None)).mul_(scaling)
            # Written as (inner^T grad)^T: the narrow factor first is the faster order on a CPU.
            d_ups.append(linear(part.t(), part_grad.t(), None).t().to(up.dtype).mul_(scaling) if needed else None)
        if ctx.ahead is not None:
            ctx.ahead.left = d_inner, _stack(downs, grad.dtype)
        d_x = linear(d_inner, _stack(downs, grad.dtype).t(), None) if ctx.needs_input_grad[1] else None
        d_downs: Sequence[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[6 : 6 + count]):
            stacked = linear(d_inner.t(), x.t(), None)
            d_downs = [d.to(a.dtype) for d, a in zip(stacked.split([a.shape[0] for a in downs]), downs, strict=True)]
        return (grad, d_x, None, None, None, None, *d_downs, *d_ups)


def with_low_rank(
    base: Callable[[Tensor], Tensor],
    x: Tensor,
    starts: Sequence[int],
    scalings: Sequence[float],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    linear: Callable[..., Tensor],
) -> Tensor:
    """Return base(x) with scaling_i * (x A_i^T) B_i^T added to columns starts[i] …, as `add_low_rank` adds them.

    base: a product with x, [..., K] -> [..., N], whose output and gradient by x are fresh tensors. In the backward pass the update's
    part of the gradient by x is added to the base's in place.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return add_low_rank(base(x), x, starts, scalings, downs, ups, linear)
    ahead = _Ahead()
    flat = _flat(x)
    out = _flat(base(_Fork.apply(flat, ahead, linear)))  # type: ignore[no-untyped-call]
    added: Tensor = _AddLowRank.apply(out, flat.detach(), ahead, linear, tuple(starts), tuple(scalings), *downs, *ups)
    return added.view(*x.shape[:-1], added.shape[-1])


def add_low_rank(
    out: Tensor,
    x: Tensor,
    starts: Sequence[int],
    scalings: Sequence[float],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    linear: Callable[..., Tensor],
) -> Tensor:
    """Add scaling_i * (x A_i^T) B_i^T to columns starts[i] … of `out`, in place, and return it.

    out: [..., N], fresh and kept by nobody's backward pass. x: [..., K] of the same dtype.
    downs: A_i [r_i, K]. ups: B_i [n_i, r_i].
    The factors may have another dtype; products are in x's. linear: the product x @ weight.T to compute with.
    """
    flat: Tensor = _AddLowRank.apply(_flat(out), _flat(x), None, linear, tuple(starts), tuple(scalings), *downs, *ups)
    return flat.view(out.shape)


def _flat(x: Tensor) -> Tensor:
    """Return [rows, columns]; itself where it is so, since what is changed in place must be no view if its gradient is not to be copied."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _stack(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return (downs[0] if len(downs) == 1 else torch.cat(tuple(downs))).to(dtype)


def _split(inner: Tensor, downs: Sequence[Tensor]) -> Sequence[Tensor]:
    return inner.split([down.shape[0] for down in downs], -1)


def _add_product(out: Tensor, inner: Tensor, up: Tensor, scaling: float, linear: Callable[..., Tensor]) -> None:
    if linear is reference_linear or out.dtype in (torch.float32, torch.float64):
        out.addmm_(inner, up.t(), alpha=scaling)
    else:
        # A platform that replaces the product in half precision does so because torch's own is slow there.
        out.add_(linear(inner, up, None), alpha=scaling)
