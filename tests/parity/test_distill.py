"""Sums and gradients of distillation are those of TRL's generalised Jensen-Shannon loss, over whole logits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegboard.nn import Head
from pegboard_distill.chunked import Distillation, distill_sum

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

TOKENS, VOCABULARY, STUDENT, TEACHER = 40, 57, 16, 24


@pytest.mark.parametrize(
    ("divergence", "beta", "trl_beta"),
    [("forward_kl", 0.5, 0.0), ("reverse_kl", 0.5, 1.0), ("js", 0.5, 0.5), ("js", 0.2, 0.2), ("js", 0.9, 0.9)],
)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences(divergence: str, beta: float, trl_beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, STUDENT, dtype=torch.float64, requires_grad=True)
    taught = torch.randn(TOKENS, TEACHER, dtype=torch.float64)
    heads = [Head(width, VOCABULARY).double() for width in (STUDENT, TEACHER)]
    for head in heads:
        torch.nn.init.normal_(head.weight, std=0.5)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[::3] = -100
    rows = (targets >= 0).nonzero().squeeze(1)
    how = Distillation(divergence, beta, temperature)
    mine = distill_sum(hidden, heads[0], taught, heads[1], targets, rows, how, chunk=7).loss
    logits: list[Tensor] = [head(states)[None] for head, states in zip(heads, (hidden, taught), strict=True)]
    loss = GKDTrainer.generalized_jsd_loss(
        logits[0], logits[1].detach(), targets[None], trl_beta, temperature, reduction="sum"
    )
    # TRL leaves the gradient to shrink with the temperature.
    loss = loss * temperature**2
    torch.testing.assert_close(mine, loss, rtol=1e-10, atol=0)
    inputs = [hidden, heads[0].weight]
    for found, right in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-12)
