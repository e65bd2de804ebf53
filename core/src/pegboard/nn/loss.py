"""Losses over the vocabulary that never hold logits for a whole batch.

Every function works through rows of hidden states in chunks; the largest temporary is [chunk, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pegboard.nn.head import Head

CHUNK = 1024


class _CrossEntropySum(torch.autograd.Function):
    """Forward and backward of each chunk in one pass: the gradient of the sum is ready before backward is called."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, linear: Callable[..., Tensor], chunk: int
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if needs_weight else None
        )
        for start in range(0, hidden.shape[0], chunk):
            rows, wanted = hidden[start : start + chunk], targets[start : start + chunk]
            logits = linear(rows, weight, None).to(total.dtype)
            norm = logits.logsumexp(-1, keepdim=True)
            total += (norm - logits.gather(1, wanted[:, None])).sum()
            if not (needs_hidden or needs_weight):
                continue
            grad = logits.sub_(norm).exp_()
            grad.scatter_add_(1, wanted[:, None], grad.new_full((), -1.0).expand(len(wanted), 1))
            grad = grad.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[start : start + chunk] = linear(grad, weight.t(), None)
            if d_weight is not None:
                d_weight += linear(grad.t(), rows.t(), None)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad,) = grads
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden.mul(grad.to(d_hidden.dtype)),
            None if d_weight is None else d_weight.mul(grad).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def cross_entropy_sum(hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Return the sum over `rows` of -log p(target), a scalar of at least float32.

    hidden: [T, H]. targets: [T] int64. rows: [M] int64, the rows that count (M = 0 gives 0 with zero gradients).
    One pass: each chunk's gradient is computed beside its loss, so nothing is recomputed and no logits are kept.
    """
    selected = hidden.index_select(0, rows)
    wanted = targets.index_select(0, rows)
    out: Tensor = _CrossEntropySum.apply(selected, head.matrix, wanted, head.kernels.linear, chunk)  # type: ignore[no-untyped-call]
    return out


def token_logps(hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Return log p(target) of each of `rows`, [M] of at least float32, for losses that couple tokens of a sequence.

    Arguments as in `cross_entropy_sum`. Logits are recomputed chunk by chunk in the backward pass.
    """

    def logps(chunk_hidden: Tensor, wanted: Tensor) -> Tensor:
        logits: Tensor = head(chunk_hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.gather(1, wanted[:, None]).squeeze(1) - logits.logsumexp(-1)

    selected, wanted = hidden.index_select(0, rows), targets.index_select(0, rows)
    parts = [
        checkpoint(logps, selected[start : start + chunk], wanted[start : start + chunk], use_reentrant=False)
        for start in range(0, selected.shape[0], chunk)
    ]
    if not parts:
        return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32)) + hidden.sum() * 0
    return torch.cat(parts)
