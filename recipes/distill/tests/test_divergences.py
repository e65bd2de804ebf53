"""Divergences against their definitions, and their derivatives against autograd through those."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pegboard_distill.divergences import DIVERGENCES, divergence_and_slope

VOCABULARY = 11


def definition(name: str, p: Tensor, q: Tensor, beta: float) -> Tensor:
    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    mixture = beta * p + (1 - beta) * q
    return {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "symmetric_kl": (1 - beta) * kl(p, q) + beta * kl(q, p),
        "js": beta * kl(p, mixture) + (1 - beta) * kl(q, mixture),
    }[name]


def grouped(probs: Tensor, ids: Tensor) -> Tensor:
    """The probabilities of `ids`, and of all others together."""
    kept = probs.gather(-1, ids)
    return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)


def random_logits(seed: int, rows: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, rows, VOCABULARY, dtype=torch.float64, generator=generator) * 2
    return teacher, student.requires_grad_()


@pytest.mark.parametrize(
    ("name", "beta", "top_k"),
    list(itertools.product(DIVERGENCES, [0.5, 0.2], [None, 1, 4, VOCABULARY - 2, VOCABULARY])),
)
def test_values_and_derivatives(name: str, beta: float, top_k: int | None) -> None:
    teacher, student = random_logits(1)
    p, q = teacher.softmax(-1), student.softmax(-1)
    if top_k is not None and top_k < VOCABULARY:
        ids = p.topk(top_k, -1).indices
        p, q = grouped(p, ids), grouped(q, ids)
    wanted = definition(name, p, q, beta)
    (slope,) = torch.autograd.grad(wanted.sum(), student)
    with torch.no_grad():
        found = divergence_and_slope(DIVERGENCES[name], teacher.log_softmax(-1), student.log_softmax(-1), beta, top_k)
    torch.testing.assert_close(found[0], wanted.detach(), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found[1], slope, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_distributions_do_not_diverge(name: str) -> None:
    teacher, _ = random_logits(2)
    log_p = teacher.log_softmax(-1)
    values, slope = divergence_and_slope(DIVERGENCES[name], log_p, log_p.clone(), 0.3, None)
    assert values.abs().max() < 1e-14 and slope.abs().max() < 1e-14


@pytest.mark.parametrize("name", DIVERGENCES)
def test_taking_tokens_together_never_adds(name: str) -> None:
    teacher, student = (x.detach().log_softmax(-1) for x in random_logits(3, rows=50))
    last = torch.zeros(50, dtype=torch.float64)
    for top_k in (1, 2, 5, None):
        values, _ = divergence_and_slope(DIVERGENCES[name], teacher, student, 0.5, top_k)
        assert (values >= last - 1e-12).all()
        if top_k is None:
            assert values.min() > 0


def test_js_is_symmetric_and_bounded_and_kl_at_its_ends() -> None:
    teacher, student = (x.detach().log_softmax(-1) for x in random_logits(4))
    js = DIVERGENCES["js"]
    torch.testing.assert_close(js(teacher, student, 0.5)[0], js(student, teacher, 0.5)[0])
    apart = torch.full((2, 3), -400.0, dtype=torch.float64)
    apart[0, 0] = apart[1, 1] = 0
    assert js(apart[:1], apart[1:], 0.5)[0].item() == pytest.approx(0.6931471805599453)
    for beta, name in ((1e-6, "forward_kl"), (1 - 1e-6, "reverse_kl")):
        scaled = js(teacher, student, beta)[0] / min(beta, 1 - beta)
        torch.testing.assert_close(scaled, DIVERGENCES[name](teacher, student, 0.5)[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize(("name", "top_k"), list(itertools.product(DIVERGENCES, [None, 3])))
def test_certain_distributions_stay_finite_in_float32(name: str, top_k: int | None) -> None:
    logits = torch.zeros(2, 3, 40)
    logits[0, :, 5], logits[1, 0, 5], logits[1, 1, 7], logits[1, 2] = 3000, 3000, 3000, torch.linspace(-900, 900, 40)
    log_p, log_q = logits.log_softmax(-1)
    values, slope = divergence_and_slope(DIVERGENCES[name], log_p, log_q, 0.5, top_k)
    assert values.isfinite().all() and slope.isfinite().all()
