"""The low-rank update as one differentiable step around the base product, which it adds to in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
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

    One product serves all A_i, and one all B_i, which stand along the diagonal of a matrix: the zeros beside them are few, and a second
    pass over `out` would cost more. Kept for the backward pass: x (shared with whoever else keeps it), x A^T, [T, sum of ranks], and
    both matrices.
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
        downs, ups = factors[: len(starts)], factors[len(starts) :]
        scaling = scalings[0] if len(set(scalings)) == 1 else None
        down, up = _stack(downs, x.dtype), _diagonal(ups, starts, None if scaling is not None else scalings, x.dtype)
        inner = linear(x, down, None)
        columns = slice(min(starts), min(starts) + up.shape[0])
        _add_product(out[:, columns], inner, up, 1.0 if scaling is None else scaling, linear)
        ctx.save_for_backward(x, inner, down, up)
        ctx.ahead, ctx.linear, ctx.starts, ctx.scalings, ctx.scaling = ahead, linear, starts, scalings, scaling
        ctx.columns = columns
        ctx.like = [(factor.shape[0], factor.dtype) for factor in factors]
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        x, inner, down, up = ctx.saved_tensors
        linear, count = ctx.linear, len(ctx.starts)
        needs_down, needs_up = ctx.needs_input_grad[6 : 6 + count], ctx.needs_input_grad[6 + count :]
        own = grad[:, ctx.columns]
        d_inner = linear(own, up.t(), None)
        if ctx.scaling is not None:
            d_inner.mul_(ctx.scaling)
        d_ups: list[Tensor | None] = [None] * count
        if any(needs_up):
            # As (inner^T grad)^T: the narrow factor first is the faster order on a CPU.
            d_up = linear(inner.t(), own.t(), None)
            places = zip(ctx.starts, ctx.scalings, _ranks(ctx.like[:count]), ctx.like[count:], needs_up, strict=True)
            for index, (start, scaling, ranks, (rows, dtype), needed) in enumerate(places):
                if needed:
                    begin = start - ctx.columns.start
                    part = d_up[ranks, begin : begin + rows].t()
                    d_ups[index] = torch.mul(part, scaling, out=part.new_empty(part.shape, dtype=dtype))
        if ctx.ahead is not None:
            ctx.ahead.left = d_inner, down
        d_x = linear(d_inner, down.t(), None) if ctx.needs_input_grad[1] else None
        d_downs: list[Tensor | None] = [None] * count
        if any(needs_down):
            stacked = linear(d_inner.t(), x.t(), None).split([ranks for ranks, _ in ctx.like[:count]])
            d_downs = [d.to(dtype) for d, (_, dtype) in zip(stacked, ctx.like[:count], strict=True)]
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
    out = _flat(base(_Fork.apply(flat, ahead, linear)))
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


def _diagonal(
    ups: Sequence[Tensor], starts: Sequence[int], scalings: Sequence[float] | None, dtype: torch.dtype
) -> Tensor:
    """Return all B_i, [n_i, r_i], in one matrix: rows as they stand from the first start on, columns side by side, zeros elsewhere."""
    if len(ups) == 1:
        return (ups[0] if scalings is None else ups[0] * scalings[0]).to(dtype)
    first = min(starts)
    rows = max(start + up.shape[0] for start, up in zip(starts, ups, strict=True)) - first
    made = ups[0].new_zeros(rows, sum(up.shape[1] for up in ups), dtype=dtype)
    for index, (start, ranks) in enumerate(zip(starts, _ranks([(up.shape[1], dtype) for up in ups]), strict=True)):
        up = ups[index] if scalings is None else ups[index] * scalings[index]
        made[start - first : start - first + up.shape[0], ranks] = up
    return made


def _ranks(like: Sequence[tuple[int, torch.dtype]]) -> list[slice]:
    """Return the columns of each update, one after the other. like: of each the rank, and what it is in."""
    ends = list(accumulate(rank for rank, _ in like))
    return [slice(end - rank, end) for end, (rank, _) in zip(ends, like, strict=True)]


def _add_product(out: Tensor, inner: Tensor, up: Tensor, scaling: float, linear: Callable[..., Tensor]) -> None:
    if linear is reference_linear or out.dtype in (torch.float32, torch.float64):
        out.addmm_(inner, up.t(), alpha=scaling)
    else:
        # A platform that replaces the product in half precision does so because torch's own is slow there.
        out.add_(linear(inner, up, None), alpha=scaling)
