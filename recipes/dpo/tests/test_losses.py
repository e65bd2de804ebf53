"""Each loss against its formula in plain floats, its derivative against finite differences, and what it is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pegboard_dpo.losses import PAIR_LOSSES, kto, log_odds_ratio, log_one_minus_exp, simpo

BETA, SMOOTHING = 0.3, 0.12


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def formula(name: str, c: float, r: float) -> float:
    b, e = BETA, SMOOTHING
    win = sigma(b * (c - r))
    match name:
        case "sigmoid":
            return -(1 - e) * math.log(win) - e * math.log(1 - win)
        case "robust":
            return ((1 - e) * -math.log(win) - e * -math.log(1 - win)) / (1 - 2 * e)
        case "ipo":
            return (c - r - 1 / (2 * b)) ** 2
        case "hinge":
            return max(0.0, 1 - b * (c - r))
        case "exo":
            return win * math.log(win / (1 - e)) + (1 - win) * math.log((1 - win) / e)
        case "nca":
            return -math.log(sigma(b * c)) - 0.5 * math.log(sigma(-b * c)) - 0.5 * math.log(sigma(-b * r))
        case "sppo":
            return (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2
        case "apo_zero":
            return 1 - sigma(b * c) + sigma(b * r)
        case "apo_down":
            return sigma(b * c) + 1 - win
        case "discopop":
            mix = sigma(b * (c - r) / 0.05)
            return -math.log(win) * (1 - mix) + math.exp(-b * (c - r)) * mix
    raise AssertionError(name)


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(2, 40, dtype=torch.float64, generator=generator) * 3
    return values[0], values[1]


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_values(name: str) -> None:
    chosen, rejected = pairs()
    losses = PAIR_LOSSES[name](chosen, rejected, BETA, SMOOTHING)
    wanted = [formula(name, c, r) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients(name: str) -> None:
    chosen, rejected = (x.requires_grad_() for x in pairs())
    assert torch.autograd.gradcheck(lambda c, r: PAIR_LOSSES[name](c, r, BETA, SMOOTHING), (chosen, rejected))


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("size", [80.0, 5000.0])
def test_far_apart_answers_give_finite_gradients(name: str, size: float) -> None:
    chosen = torch.tensor([-size, size], requires_grad=True)
    rejected = torch.tensor([size, -size], requires_grad=True)
    losses = PAIR_LOSSES[name](chosen, rejected, BETA, SMOOTHING)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (chosen, rejected))


@pytest.mark.parametrize("name", ["sigmoid", "robust", "ipo", "hinge"])
def test_a_step_down_widens_the_margin(name: str) -> None:
    chosen, rejected = (torch.zeros(1, requires_grad=True) for _ in range(2))
    PAIR_LOSSES[name](chosen, rejected, BETA, SMOOTHING).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() < 0 < rejected.grad.item()


def test_the_robust_loss_is_unbiased() -> None:
    """With a share ε of the pairs flipped, its mean is the loss of the right labels (eq. 12 of arXiv:2403.00409)."""
    chosen, rejected = pairs()
    robust, plain = PAIR_LOSSES["robust"], PAIR_LOSSES["sigmoid"]
    mean = (1 - SMOOTHING) * robust(chosen, rejected, BETA, SMOOTHING) + SMOOTHING * robust(
        rejected, chosen, BETA, SMOOTHING
    )
    torch.testing.assert_close(mean, plain(chosen, rejected, BETA, 0.0))


def test_simpo_asks_for_a_margin() -> None:
    chosen, rejected = pairs()
    wanted = [-math.log(sigma(2.0 * (c - r) - 1.5)) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert simpo(chosen, rejected, 2.0, 1.5, 0.0).tolist() == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(
        simpo(chosen, rejected, BETA, 0.0, SMOOTHING), PAIR_LOSSES["sigmoid"](chosen, rejected, BETA, SMOOTHING)
    )


def test_log_odds() -> None:
    chosen, rejected = (-x.abs() - 0.01 for x in pairs())
    odds = [math.exp(x) / (1 - math.exp(x)) for x in (*chosen.tolist(), *rejected.tolist())]
    wanted = [math.log(c / r) for c, r in zip(odds[:40], odds[40:], strict=True)]
    assert log_odds_ratio(chosen, rejected).tolist() == pytest.approx(wanted, rel=1e-10)
    assert torch.autograd.gradcheck(log_odds_ratio, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_log_one_minus_exp_keeps_its_digits_at_both_ends() -> None:
    x = torch.tensor([-1e-12, -1e-3, -0.7, -40.0, -1e4], dtype=torch.float64, requires_grad=True)
    y = log_one_minus_exp(x)
    wanted = [math.log(-math.expm1(-1e-12)), math.log(-math.expm1(-1e-3)), math.log1p(-math.exp(-0.7))]
    assert y.tolist() == pytest.approx([*wanted, -math.exp(-40.0), 0.0], rel=1e-14)
    y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    certain = log_one_minus_exp(torch.zeros(1, requires_grad=True))
    assert certain.isfinite().all()


def test_kto() -> None:
    ratios, z = pairs()[0], 0.4
    good, bad = (kto(ratios, z, BETA, desirable=desirable) for desirable in (True, False))
    assert good.tolist() == pytest.approx([1 - sigma(BETA * (r - z)) for r in ratios.tolist()], rel=1e-12)
    assert bad.tolist() == pytest.approx([1 - sigma(BETA * (z - r)) for r in ratios.tolist()], rel=1e-12)
