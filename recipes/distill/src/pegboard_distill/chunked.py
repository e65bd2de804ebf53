"""Distillation over the vocabulary without logits of a whole batch: forward and backward of each chunk in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pegboard.nn.head import Head
from pegboard.nn.logits import cap_slope, capped
from pegboard_distill.divergences import DIVERGENCES, divergence_and_slope

CHUNK = 1024
"""Rows at once: a divergence has several float32 temporaries as large as the logits."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """What is minimised for each token: weight · τ² · D(p, q) - (1 - weight) · log q₁(target).

    p, q: softmax of the teacher's and of the student's logits over τ, the temperature; q₁: the student's at temperature 1. τ² keeps
    the size of the gradient when the temperature changes (section 2 of arXiv:1503.02531).
    divergence: a key of `DIVERGENCES`; beta: its weight, where it has one. top_k: see `divergence_and_slope`.
    """

    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    top_k: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class DistillSums:
    """Sums over rows. loss: what is minimised, attached to the graph. The others have no gradient: divergence: τ² · D.
    cross_entropy: -log q₁(target). agreement: rows in which student and teacher find the same token most likely.
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    agreement: Tensor


class _DistillSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        targets: Tensor,
        heads: tuple[Head, Head],
        how: Distillation,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        sums = torch.zeros(3, dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, wide)) if needs_weight else None
        student, teacher = heads
        teacher_weight = teacher.matrix  # once: a split one is gathered
        for start in range(0, hidden.shape[0], chunk):
            rows = hidden[start : start + chunk]
            logits = _logits(student, weight, rows, wide)
            others = _logits(teacher, teacher_weight, teacher_hidden[start : start + chunk], wide)
            found, slope = _chunk(logits, others, targets[start : start + chunk], how)
            sums += found
            if student.softcap is not None:
                slope *= cap_slope(logits, student.softcap)
            slope = slope.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[start : start + chunk] = student.kernels.linear(slope, weight.t(), None)
            if d_weight is not None:
                student.kernels.add_product_(d_weight, slope, rows)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(sums)
        return how.weight * sums[0] + (1 - how.weight) * sums[1], sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden.mul(grads[0].to(d_hidden.dtype)),
            None if d_weight is None else d_weight.mul(grads[0]).to(ctx.weight_dtype),
            *(None,) * 5,
        )


def _logits(head: Head, weight: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    return capped(head.kernels.linear(rows, weight, None).to(dtype), head.softcap)


def _chunk(logits: Tensor, others: Tensor, targets: Tensor, how: Distillation) -> tuple[Tensor, Tensor]:
    """Return the three sums of a chunk, [3], and the derivative of its loss by the student's logits, [M, V].

    logits: the student's, [M, V]. others: the teacher's, [M, W]; the tokens that both know are compared, the first min(V, W).
    """
    shared = min(logits.shape[1], others.shape[1])
    tau = how.temperature
    log_q = (logits[:, :shared] / tau).log_softmax(-1)
    log_p = (others[:, :shared] / tau).log_softmax(-1)
    values, slope = divergence_and_slope(DIVERGENCES[how.divergence], log_p, log_q, how.beta, how.top_k)
    slope = slope.mul_(how.weight * tau)
    if shared < logits.shape[1]:
        slope = torch.nn.functional.pad(slope, (0, logits.shape[1] - shared))
    norm = logits.logsumexp(-1, keepdim=True)
    cross_entropy = (norm - logits.gather(1, targets[:, None])).sum()
    if how.weight < 1:
        slope = slope.add_((logits - norm).exp_(), alpha=1 - how.weight)
        slope.scatter_add_(1, targets[:, None], slope.new_full((), how.weight - 1).expand(len(targets), 1))
    agreement = (log_p.argmax(-1) == log_q.argmax(-1)).sum()
    return torch.stack([tau**2 * values.sum(), cross_entropy, agreement.to(values.dtype)]), slope


def distill_sum(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    targets: Tensor,
    rows: Tensor,
    how: Distillation,
    *,
    chunk: int = CHUNK,
) -> DistillSums:
    """Return the sums over `rows` of what `how` says, of at least float32.

    hidden: the student's, [T, H]. teacher_hidden: [T, G], of a width of its own. targets: [T] int64. rows: [M] int64, those that count.
    The largest temporaries are [chunk, V]; nothing is recomputed, and no gradient goes to the teacher.
    """
    loss, sums = _DistillSum.apply(
        hidden.index_select(0, rows),
        head.matrix,
        teacher_hidden.detach().index_select(0, rows),
        targets.index_select(0, rows),
        (head, teacher_head),
        how,
        chunk,
    )
    return DistillSums(loss, *sums.unbind())
