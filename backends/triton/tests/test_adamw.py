"""The update in one pass against torch's: in float64 where nothing is rounded, with the same random bits where they decide."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard_trainer.adamw_op import AdamWStep
from pegboard_trainer.adamw_op import adamw_ as plain
from pegboard_triton import adamw
from pegboard_triton.adamw import adamw_, replacements

HOW = AdamWStep(lr=0.02, beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1)
SIZES = (1, 7, 33, 2500)

# The random bits come from products that leave 32 bits on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


def draw(seed: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def tensors(device: torch.device, weight: torch.dtype, moment: torch.dtype, master: bool, sizes: Any = SIZES) -> Any:
    def some(seed: int, dtype: torch.dtype) -> list[Tensor]:
        return [draw(seed + i, n, dtype, device) for i, n in enumerate(sizes)]

    weights = some(0, weight)
    return SimpleNamespace(
        weights=weights,
        gradients=some(100, weight),
        first=[t * 0.1 for t in some(200, moment)],
        second=[t.square() * 0.1 for t in some(300, moment)],
        masters=[w.float() + 1e-4 if master else None for w in weights],
    )


def update(function: Any, t: Any, how: AdamWStep, factor: Tensor | None = None) -> None:
    count = range(len(t.weights))
    seeds = [(i * 7919 + 5) << 31 | 77 + i for i in count]
    function(t.weights, t.gradients, t.first, t.second, t.masters, [3 + i for i in count], seeds, how, factor)


@pytest.fixture(params=["together", "alone"], autouse=True)
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors share a launch where they are small, or have one each."""
    monkeypatch.setattr(adamw, "SMALL", 1 << 20 if request.param == "together" else 0)


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("moment", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_pass_is_torchs_update(device: torch.device, dtype: torch.dtype, moment: torch.dtype, master: bool) -> None:
    how = AdamWStep(HOW.lr, HOW.beta1, HOW.beta2, HOW.eps, HOW.weight_decay, at_random=True)
    ours, theirs = (tensors(device, dtype, moment, master) for _ in range(2))
    factor = torch.tensor(0.5, device=device)
    update(adamw_, ours, how, factor)
    update(plain, theirs, how, factor)
    for name in ("weights", "first", "second", "masters"):
        for one, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            if one is None:
                continue
            if one.dtype == torch.float32:
                torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)
            elif one.dtype == torch.float16 or (name == "weights" and master):
                torch.testing.assert_close(one, other, rtol=8e-3, atol=0)  # the interpreter cuts what it narrows
            else:
                # The same random bits: only a value within a few float32 roundings of a border may fall to the other side.
                assert (one != other).float().mean() < 0.01


def test_moments_and_weights_against_float64(device: torch.device) -> None:
    t = tensors(device, torch.float32, torch.float32, False, (1000,))
    w, g, m, v = (x[0].double().clone() for x in (t.weights, t.gradients, t.first, t.second))
    update(adamw_, t, HOW)
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * g.square()
    w = w * (1 - 0.02 * 0.1) - 0.02 * (m / (1 - 0.9**3)) / ((v / (1 - 0.95**3)).sqrt() + 1e-6)
    for one, exact in ((t.weights, w), (t.first, m), (t.second, v)):
        torch.testing.assert_close(one[0].double(), exact, rtol=1e-6, atol=1e-7)


def test_rounding_at_random_is_right_in_the_mean(device: torch.device) -> None:
    """A decay that a bfloat16 is too coarse for: weights go to one neighbour or the other, and lose what they should together."""
    count = 20_000
    weight = torch.ones(count, device=device, dtype=torch.bfloat16)
    zeros = [torch.zeros(count, device=device, dtype=torch.bfloat16) for _ in range(3)]
    how = AdamWStep(lr=1e-3, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.5, at_random=True)
    adamw_([weight], [zeros[0]], [zeros[1]], [zeros[2]], [None], [1], [(1 << 62) - 9], how)
    assert set(weight.tolist()) == {1.0, 1 - 2**-8}
    assert abs(float(weight.float().mean()) - (1 - 5e-4)) < 5e-5


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_stays_so(device: torch.device) -> None:
    weight, gradient = (torch.ones(40, device=device, dtype=torch.bfloat16) for _ in range(2))
    gradient[5], gradient[37] = float("nan"), float("inf")
    moments = [torch.zeros(40, device=device, dtype=torch.bfloat16) for _ in range(2)]
    how = AdamWStep(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, at_random=True)
    with torch.no_grad():
        adamw_([weight], [gradient], [moments[0]], [moments[1]], [None], [1], [9], how)
    assert weight.isfinite().sum() == 38
    assert moments[0][5].isnan()
    assert moments[0][37].isinf()


def test_what_it_does_not_take_is_torchs(device: torch.device) -> None:
    ours, theirs = (tensors(device, torch.float32, torch.float32, False, (8, 9, 12)) for _ in range(2))
    for t in (ours, theirs):
        for name in ("weights", "gradients", "first", "second"):
            getattr(t, name)[1] = getattr(t, name)[1].double()
        t.gradients[2] = torch.stack((t.gradients[2],) * 2, 1)[:, 0]
        update(adamw_ if t is ours else plain, t, HOW)
    for name in ("weights", "first", "second"):
        for one, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)


def test_offered_for_training_alone() -> None:
    assert "adamw_" in replacements("train", torch.bfloat16)
    assert not replacements("decode", torch.bfloat16) and not replacements("train", torch.float64)
