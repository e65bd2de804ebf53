"""Divergences of a student's distribution q from a teacher's p, with what their derivatives are made of.

Every function takes log p and log q, [M, K] each summing to one, and returns the divergence of each row, [M], and the flow q ∂D/∂q,
[M, K], but for terms c q that are the same for all of a row. By the logits z of q = softmax(z) the derivative is then
∂D/∂z = flow - q Σ flow, in which such terms vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(log p [M, K], log q [M, K], β) -> (divergences [M], flows [M, K])."""


def forward_kl(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) = Σ p log(p / q): the student covers all that the teacher says (Hinton et al. 2015, arXiv:1503.02531)."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), p.neg_()


def reverse_kl(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) = Σ q log(q / p): the student keeps to what the teacher finds likely (MiniLLM, arXiv:2306.08543)."""
    flow = log_q.exp() * (log_q - log_p)
    return flow.sum(-1), flow


def symmetric_kl(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(1 - β) KL(p ‖ q) + β KL(q ‖ p); with β = 1/2 half of Jeffreys' divergence."""
    covering, covering_flow = forward_kl(log_p, log_q, beta)
    keeping, keeping_flow = reverse_kl(log_p, log_q, beta)
    return (1 - beta) * covering + beta * keeping, covering_flow.mul_(1 - beta).add_(keeping_flow, alpha=beta)


def jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """β KL(p ‖ m) + (1 - β) KL(q ‖ m) with m = β p + (1 - β) q, 0 < β < 1: eq. 1 of GKD (arXiv:2306.13649)."""
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    flow = log_q.exp() * (log_q - log_m) * (1 - beta)
    return beta * (log_p.exp() * (log_p - log_m)).sum(-1) + flow.sum(-1), flow


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "js": jensen_shannon,
}
"""By the name that a config gives."""


def divergence_and_slope(
    divergence: Divergence, log_p: Tensor, log_q: Tensor, beta: float, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """Return the divergence of each row, [M], and its derivative by the logits of q, [M, V]. log_p, log_q: [M, V].

    top_k: compare the probabilities of the teacher's k most likely tokens, and that of all others together as one event more, so
    that both are distributions still. Never more than the divergence over all tokens.
    """
    if top_k is None or top_k >= log_p.shape[-1] - 1:
        values, flow = divergence(log_p, log_q, beta)
        return values, flow.addcmul(log_q.exp(), flow.sum(-1, keepdim=True), value=-1)
    top, ids = log_p.topk(top_k, -1)
    seen = log_q.gather(-1, ids)
    values, flow = divergence(_with_rest(top), rest := _with_rest(seen), beta)
    total = flow.sum(-1, keepdim=True)
    # The event of all others passes its flow on to each of them by its share in it, which is at most one.
    shares = (log_q - rest[:, -1:]).clamp_(max=0).exp_()
    slope = shares.mul_(flow[:, -1:]).addcmul_(log_q.exp(), total, value=-1)
    return values, slope.scatter_(-1, ids, flow[:, :-1] - seen.exp() * total)


def _with_rest(log_probs: Tensor) -> Tensor:
    """Return [M, k] with the log-probability of everything else beside it, [M, k + 1]; at least that of a rounding error."""
    known = log_probs.logsumexp(-1, keepdim=True).clamp(max=-torch.finfo(log_probs.dtype).eps)
    return torch.cat([log_probs, torch.log(-torch.expm1(known))], -1)
