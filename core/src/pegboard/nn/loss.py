"""Losses over the vocabulary that never hold logits for a whole batch.

Every function works through rows of hidden states in chunks; the largest temporary is [chunk, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pegboard.nn.columns import Columns
from pegboard.nn.head import Head
from pegboard.ops import KernelTable

TokenLoss = Callable[[Tensor, slice], Tensor]
"""(log p of the targets of some rows [m], which of all rows these are) -> their losses [m], differentiable by the first."""


class _LossSum(torch.autograd.Function):
    """Forward and backward of each chunk in one pass: the gradient of the sum is ready before backward is called."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        kernels: KernelTable,
        softcap: float | None,
        columns: Columns,
        chunk: int,
        loss: TokenLoss | None,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        logps = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if needs_weight else None
        )
        for start in range(0, hidden.shape[0], chunk):
            at = slice(start, min(start + chunk, hidden.shape[0]))
            rows, wanted = hidden[at], columns.own(targets[at])
            logits = kernels.linear(rows, weight, None)
            if loss is None and columns.group is None and (needs_hidden or needs_weight):
                logps[at], grad = kernels.cross_entropy_(logits, wanted, softcap)
                total -= logps[at].sum()
            else:
                norm, picked = columns.joined(*kernels.logits_sums(logits, wanted, softcap))
                logps[at] = picked - norm
                losses, slope = (-logps[at], None) if loss is None else _losses_and_slope(loss, logps[at], at)
                total += losses.sum()
                if not (needs_hidden or needs_weight):
                    continue
                grad = kernels.logits_slope_(logits, wanted, norm, None if slope is None else -slope, softcap)
            if d_hidden is not None:
                d_hidden[at] = kernels.linear(grad, weight.t(), None)
            if d_weight is not None:
                kernels.add_product_(d_weight, grad, rows)
        ctx.save_for_backward(None if d_hidden is None else columns.total(d_hidden), d_weight)
        ctx.weight_dtype, ctx.scaled = weight.dtype, kernels.scaled
        ctx.mark_non_differentiable(logps)
        return total, logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else ctx.scaled(d_hidden, grad, d_hidden.dtype),
            None if d_weight is None else ctx.scaled(d_weight, grad, ctx.weight_dtype),
            *(None,) * 6,
        )


def _losses_and_slope(loss: TokenLoss, logps: Tensor, at: slice) -> tuple[Tensor, Tensor]:
    """Return the losses of a chunk and their derivatives by its log-probabilities, both [m]."""
    with torch.enable_grad():
        given = logps.detach().requires_grad_()
        losses = loss(given, at)
        (slope,) = torch.autograd.grad(losses.sum(), given)
    return losses.detach(), slope


def _loss_sum(
    hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, chunk: int | None, loss: TokenLoss | None
) -> tuple[Tensor, Tensor]:
    selected, wanted = hidden.index_select(0, rows), targets.index_select(0, rows)
    chunk = chunk or _rows_at_once(head, hidden.dtype)
    out: tuple[Tensor, Tensor] = _LossSum.apply(  # type: ignore[no-untyped-call]
        selected, head.part, wanted, head.kernels, head.softcap, head.columns, chunk, loss
    )
    return out


def _rows_at_once(head: Head, dtype: torch.dtype) -> int:
    found: int = head.kernels.loss_rows(head.part.shape[0], dtype)
    return found


def cross_entropy_sum(hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, *, chunk: int | None = None) -> Tensor:
    """Return the sum over `rows` of -log p(target), a scalar of at least float32.

    hidden: [T, H]. targets: [T] int64. rows: [M] int64, the rows that count (M = 0 gives 0 with zero gradients). chunk: rows at once;
    what op `loss_rows` says without.
    One pass: each chunk's gradient is computed beside its loss, so nothing is recomputed and no logits are kept.
    """
    return _loss_sum(hidden, head, targets, rows, chunk, None)[0]


def token_loss_sum(
    hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, loss: TokenLoss, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum over `rows` of a loss that each token has by itself, given its log p(target): a scalar; and log p, [M] without
    gradient. Both are of at least float32.

    hidden, targets, rows: as in `cross_entropy_sum`, and as there in one pass. loss: called once a chunk; with `at` it finds what else
    it knows of these rows, such as log-probabilities of another model. A loss that couples tokens takes `token_logps`.
    """
    return _loss_sum(hidden, head, targets, rows, chunk, loss)


class _TokenLogps(torch.autograd.Function):
    """log p of each row's target. What a row's state adds to it is known beside the value, but for the factor that comes back;
    only the head's gradient, a sum over rows with their factors, needs the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        kernels: KernelTable,
        softcap: float | None,
        columns: Columns,
        chunk: int,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        at_once = needs_hidden and not needs_weight
        logps = torch.zeros(
            hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        d_hidden = torch.empty_like(hidden) if at_once else None
        for start in range(0, hidden.shape[0], chunk):
            rows, wanted = hidden[start : start + chunk], columns.own(targets[start : start + chunk])
            logits = kernels.linear(rows, weight, None)
            if d_hidden is None or columns.group is not None:
                norm, picked = columns.joined(*kernels.logits_sums(logits, wanted, softcap))
                logps[start : start + chunk] = picked - norm
                if d_hidden is not None:
                    kernels.logits_slope_(logits, wanted, norm, None, softcap)
            else:
                logps[start : start + chunk], _ = kernels.cross_entropy_(logits, wanted, softcap)
            if d_hidden is not None:
                d_hidden[start : start + chunk] = kernels.linear(logits, weight.t(), None)
        if d_hidden is not None:
            d_hidden = columns.total(d_hidden)
        ctx.kernels, ctx.softcap, ctx.columns, ctx.chunk, ctx.at_once = kernels, softcap, columns, chunk, at_once
        ctx.save_for_backward(*((d_hidden,) if at_once else (hidden, weight, targets)))
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        (grad,) = grads
        if ctx.at_once:
            (d_rows,) = ctx.saved_tensors
            return (d_rows * -grad[:, None]).to(d_rows.dtype), None, None, None, None, None, None
        hidden, weight, targets = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows, wanted = hidden[start : start + ctx.chunk], ctx.columns.own(targets[start : start + ctx.chunk])
            logits = ctx.kernels.linear(rows, weight, None)
            norm, _ = ctx.columns.joined(*ctx.kernels.logits_sums(logits, wanted, ctx.softcap))
            d_logits = ctx.kernels.logits_slope_(logits, wanted, norm, -grad[start : start + ctx.chunk], ctx.softcap)
            if d_hidden is not None:
                d_hidden[start : start + ctx.chunk] = ctx.kernels.linear(d_logits, weight.t(), None)
            ctx.kernels.add_product_(d_weight, d_logits, rows)
        if d_hidden is not None:
            d_hidden = ctx.columns.total(d_hidden)
        return d_hidden, d_weight.to(weight.dtype), None, None, None, None, None


def token_logps(hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, *, chunk: int | None = None) -> Tensor:
    """Return log p(target) of each of `rows`, [M] of at least float32, for losses that couple tokens of a sequence.

    Arguments as in `cross_entropy_sum`. With a frozen head nothing is recomputed: each row's gradient is ready up to a factor. With a
    trained one the logits are computed again, chunk by chunk, in the backward pass.
    """
    selected, wanted = hidden.index_select(0, rows), targets.index_select(0, rows)
    chunk = chunk or _rows_at_once(head, hidden.dtype)
    out: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        selected, head.part, wanted, head.kernels, head.softcap, head.columns, chunk
    )
    return out


def sequence_sums(values: Tensor, rows: Tensor, sequence_ids: Tensor, count: int) -> Tensor:
    """Return the sums of values by sequence, [count]: such as the log-probability of each answer from those of its tokens.

    values: [M], one for each of `rows` [M]. sequence_ids: [T] the sequence of each row of the batch, below `count`.
    """
    return values.new_zeros(count).index_add(0, sequence_ids.index_select(0, rows), values)
