"""Losses over log-probabilities of whole answers, as formulae: [P] in, one loss for each pair or answer out.

A log-ratio is log π(y|x) - log π_ref(y|x) of an answer y; `chosen` and `rejected` are those of the two answers of a pair. A reward is
β times a log-ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

PairLoss = Callable[[Tensor, Tensor, float, float], Tensor]
"""(chosen log-ratios [P], rejected log-ratios [P], β, share ε of labels that are wrong) -> losses [P]."""


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """DPO, eq. 7 of arXiv:2305.18290: -log σ(β Δ); with ε, the cross entropy of labels that are right with 1 - ε."""
    margin = beta * (chosen - rejected)
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def robust(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """Robust DPO, arXiv:2403.00409: an unbiased estimate of DPO's loss where a share ε < 1/2 of labels is flipped."""
    margin = beta * (chosen - rejected)
    return ((smoothing - 1) * logsigmoid(margin) + smoothing * logsigmoid(-margin)) / (1 - 2 * smoothing)


def ipo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """IPO, eq. 17 of arXiv:2310.12036: (Δ - 1 / 2β)², of log-ratios per token, as its authors compute it."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """Hinge of SLiC and RSO, arXiv:2305.10425, arXiv:2309.06657: max(0, 1 - β Δ)."""
    return relu(1 - beta * (chosen - rejected))


def exo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """EXO for pairs, eq. 16 of arXiv:2402.00856: the reverse KL divergence to labels that are right with 1 - ε, ε > 0."""
    margin = beta * (chosen - rejected)
    win, lose = logsigmoid(margin), logsigmoid(-margin)
    return win.exp() * (win - math.log1p(-smoothing)) + lose.exp() * (lose - math.log(smoothing))


def nca(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """NCA for pairs, arXiv:2402.05369: rewards are raised absolutely, not only relative to each other."""
    better, worse = beta * chosen, beta * rejected
    return -logsigmoid(better) - 0.5 * logsigmoid(-better) - 0.5 * logsigmoid(-worse)


def sppo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """SPPO with certain preferences, eq. 4.7 of arXiv:2405.00675: log-ratios of ±1 / 2β."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """APO-zero, eq. 7 of arXiv:2408.06266, for answers better than the model's own: chosen up, rejected down."""
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """APO-down, eq. 8 of arXiv:2408.06266, for answers worse than the model's own: both down, rejected further."""
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    """DiscoPOP, eq. 5 of arXiv:2406.08414: logistic and exponential loss, mixed by σ(β Δ / 0.05)."""
    margin = beta * (chosen - rejected)
    mix = torch.sigmoid(margin / 0.05)
    # Where the exponential has no weight it must not overflow: that would be 0 · ∞.
    return -logsigmoid(margin) * (1 - mix) + torch.exp(-margin.clamp(min=-20.0)) * mix


PAIR_LOSSES: dict[str, PairLoss] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
    "exo": exo,
    "nca": nca,
    "sppo": sppo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
}
"""By the name that a config gives."""


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, smoothing: float) -> Tensor:
    """SimPO, eq. 6 of arXiv:2405.14734: -log σ(β Δ - γ), of log-probabilities per token [P] without a reference.

    Of log-probabilities of whole answers and γ = 0 it is CPO's preference loss, eq. 3 of arXiv:2401.08417.
    """
    margin = beta * (chosen - rejected) - gamma
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the log of odds(chosen) / odds(rejected), [P], where odds = p / (1 - p): eq. 4 of ORPO, arXiv:2403.07691.

    chosen, rejected: log-probabilities per token, [P].
    """
    return (chosen - log_one_minus_exp(chosen)) - (rejected - log_one_minus_exp(rejected))


def log_one_minus_exp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x <= 0, without cancellation near 0. A certain event counts as one that fails within rounding."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    small = x > -math.log(2)
    # Each branch sees values of its own only: the derivative of the other one may be infinite.
    near = torch.log(-torch.expm1(torch.where(small, x, -0.5)))
    far = torch.log1p(-torch.exp(torch.where(small, -1.0, x)))
    return torch.where(small, near, far)


def kto(log_ratios: Tensor, baseline: Tensor | float, beta: float, *, desirable: bool) -> Tensor:
    """KTO, eq. 8 of arXiv:2402.01306: 1 - σ(β (r - z)) of a desirable answer, 1 - σ(β (z - r)) of an undesirable one.

    log_ratios: r, [N]. baseline: z >= 0, the KL divergence from the reference, a scalar without gradient; 0 makes it APO-zero for
    answers that are not paired (arXiv:2408.06266).
    """
    better = beta * (log_ratios - baseline)
    return torch.sigmoid(-better if desirable else better)
