"""The low-rank update as one differentiable step around the base product, which it adds to in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from pegboard.nn.linear import Product
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


class _Update:
    """The low-rank updates of one input: scaling_i * (x A_i^T) B_i^T, each in the columns from starts[i].

    One product serves all A_i, and one all B_i, which stand along the diagonal of a matrix: the zeros beside them are few, and a second
    pass over the output would cost more. down: [sum of ranks, K]. up: [columns, sum of ranks]. factor: on their product.
    """

    def __init__(
        self, starts: Sequence[int], scalings: Sequence[float], factors: Sequence[Tensor], linear: Callable[..., Tensor]
    ) -> None:
        self.starts, self.scalings, self.linear = starts, scalings, linear
        self.like = [(factor.shape[0], factor.dtype) for factor in factors]
        self.count = len(starts)
        self.factor = scalings[0] if len(set(scalings)) == 1 else 1.0

    def matrices(self, factors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return down and up, in the dtype of products."""
        downs, ups = factors[: self.count], factors[self.count :]
        scalings = None if len(set(self.scalings)) == 1 else self.scalings
        return _stack(downs, dtype), _diagonal(ups, self.starts, scalings, dtype)

    @property
    def columns(self) -> slice:
        """The columns of the output that it covers."""
        ends = [start + rows for start, (rows, _) in zip(self.starts, self.like[self.count :], strict=True)]
        return slice(min(self.starts), max(ends))

    def gradients(
        self, grad: Tensor, x: Tensor, inner: Tensor, up: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradient by x A^T, [T, sum of ranks], and those by the factors that need one. grad: of the covered columns."""
        linear, count = self.linear, self.count
        d_inner = linear(grad, up.t(), None)
        if self.factor != 1:
            d_inner.mul_(self.factor)
        found: list[Tensor | None] = [None] * (2 * count)
        ranks = _ranks([rank for rank, _ in self.like[:count]])
        if any(needs[:count]):
            stacked = linear(d_inner.t(), x.t(), None)
            found[:count] = [stacked[at].to(dtype) for at, (_, dtype) in zip(ranks, self.like[:count], strict=True)]
        if any(needs[count:]):
            # As (inner^T grad)^T: the narrow factor first is the faster order on a CPU.
            d_up = linear(inner.t(), grad.t(), None)
            places = zip(self.starts, self.scalings, ranks, self.like[count:], strict=True)
            for index, (start, scaling, at, (rows, dtype)) in enumerate(places):
                begin = start - min(self.starts)
                part = d_up[at, begin : begin + rows].t()
                found[count + index] = torch.mul(part, scaling, out=part.new_empty(part.shape, dtype=dtype))
        return d_inner, [d if needed else None for d, needed in zip(found, needs, strict=True)]


class _AddLowRank(torch.autograd.Function):
    """out += the update, in place. Kept for the backward pass: x (shared with whoever else keeps it), x A^T, and both matrices."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, ahead: _Ahead | None, update: _Update, *factors: Tensor) -> Tensor:
        down, up = update.matrices(factors, x.dtype)
        inner = update.linear(x, down, None)
        _add_product(out[:, update.columns], inner, up, update.factor, update.linear)
        ctx.save_for_backward(x, inner, down, up)
        ctx.ahead, ctx.update = ahead, update
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        x, inner, down, up = ctx.saved_tensors
        update = ctx.update
        d_inner, found = update.gradients(grad[:, update.columns], x, inner, up, ctx.needs_input_grad[4:])
        if ctx.ahead is not None:
            ctx.ahead.left = d_inner, down
        d_x = update.linear(d_inner, down.t(), None) if ctx.needs_input_grad[1] else None
        return (grad, d_x, None, None, *found)


class _AdaptedLinear(torch.autograd.Function):
    """x W^T + the update, of a frozen W: the large product adds to the small one as it is written. dense: dtype -> W [N, K], each time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dense: Callable[[torch.dtype], Tensor], update: _Update, *factors: Tensor
    ) -> Tensor:
        down, up = update.matrices(factors, x.dtype)
        inner = update.linear(x, down, None)
        out = torch.addmm(inner.new_empty(1), inner, up.t(), beta=0, alpha=update.factor)
        ctx.save_for_backward(x, inner, down, up)
        ctx.dense, ctx.update = dense, update
        return out.addmm_(x, dense(x.dtype).t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        x, inner, down, up = ctx.saved_tensors
        d_inner, found = ctx.update.gradients(grad, x, inner, up, ctx.needs_input_grad[3:])
        d_x = (d_inner @ down).addmm_(grad, ctx.dense(grad.dtype)) if ctx.needs_input_grad[0] else None
        return (d_x, None, None, *found)


def with_low_rank(
    base: Product,
    x: Tensor,
    starts: Sequence[int],
    scalings: Sequence[float],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    linear: Callable[..., Tensor],
) -> Tensor:
    """Return base(x) with scaling_i * (x A_i^T) B_i^T added to columns starts[i] …, as `add_low_rank` adds them.

    base: a product with x, [..., K] -> [..., N], whose output and gradient by x are fresh tensors. In the backward pass the update's
    part of the gradient by x is added to the base's in place; over a dense frozen weight, the base's to it.
    """
    update = _Update(tuple(starts), tuple(scalings), (*downs, *ups), linear)
    covers = base.dense is not None and update.columns == slice(0, base.outputs)
    if covers and torch.is_grad_enabled() and _by_torch(linear, x.dtype):
        whole: Tensor = _AdaptedLinear.apply(_flat(x), base.dense, update, *downs, *ups)
        return whole.view(*x.shape[:-1], whole.shape[-1])
    if not (torch.is_grad_enabled() and x.requires_grad):
        return add_low_rank(base(x), x, starts, scalings, downs, ups, linear)
    ahead = _Ahead()
    flat = _flat(x)
    out = _flat(base(_Fork.apply(flat, ahead, linear)))
    added: Tensor = _AddLowRank.apply(out, flat.detach(), ahead, update, *downs, *ups)
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
    update = _Update(tuple(starts), tuple(scalings), (*downs, *ups), linear)
    flat: Tensor = _AddLowRank.apply(_flat(out), _flat(x), None, update, *downs, *ups)
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
    for index, (start, ranks) in enumerate(zip(starts, _ranks([up.shape[1] for up in ups]), strict=True)):
        up = ups[index] if scalings is None else ups[index] * scalings[index]
        made[start - first : start - first + up.shape[0], ranks] = up
    return made


def _ranks(ranks: Sequence[int]) -> list[slice]:
    """Return the columns of each update, one after the other."""
    return [slice(end - rank, end) for end, rank in zip(accumulate(ranks), ranks, strict=True)]


def _by_torch(linear: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    """Whether torch's own products are good: a platform that replaces those in half precision does so because they are slow there, or
    says otherwise.
    """
    wide = dtype in (torch.float32, torch.float64)
    return wide or linear is reference_linear or getattr(linear, "beside_torch", False)


def _add_product(out: Tensor, inner: Tensor, up: Tensor, scaling: float, linear: Callable[..., Tensor]) -> None:
    if _by_torch(linear, out.dtype):
        out.addmm_(inner, up.t(), alpha=scaling)
    else:
        out.add_(linear(inner, up, None), alpha=scaling)
