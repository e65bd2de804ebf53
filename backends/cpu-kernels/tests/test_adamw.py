"""The update in one pass against torch's, in float64 where nothing is rounded, and bit for bit where random bits decide."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegboard_cpu_kernels.adamw import adamw_
from pegboard_trainer.adamw_op import AdamWStep
from pegboard_trainer.adamw_op import adamw_ as plain

HOW = AdamWStep(lr=0.02, beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1)
SIZES = (1, 7, 16, 33, 1000)


def never(*_: Any) -> NoReturn:
    raise AssertionError("the library was to compute this")


def draw(seed: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tensors(
    sizes: tuple[int, ...], weight: torch.dtype, gradient: torch.dtype, moment: torch.dtype, master: bool
) -> Any:
    weights = [draw(i, n, weight) for i, n in enumerate(sizes)]
    return SimpleNamespace(
        weights=weights,
        gradients=[draw(100 + i, n, gradient) for i, n in enumerate(sizes)],
        first=[draw(200 + i, n, moment) * 0.1 for i, n in enumerate(sizes)],
        second=[draw(300 + i, n, moment).square() * 0.1 for i, n in enumerate(sizes)],
        masters=[w.float() + 1e-4 if master else None for w in weights],
    )


def update(function: Any, t: Any, how: AdamWStep, factor: Tensor | None = None) -> None:
    count = range(len(t.weights))
    seeds = [(i * 7919 + 5) << 31 | 77 + i for i in count]
    function(t.weights, t.gradients, t.first, t.second, t.masters, [3 + i for i in count], seeds, how, factor)


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("moment", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_pass_is_torchs_update(
    library: ctypes.CDLL, isa: str, dtype: torch.dtype, moment: torch.dtype, master: bool
) -> None:
    how = AdamWStep(HOW.lr, HOW.beta1, HOW.beta2, HOW.eps, HOW.weight_decay, at_random=True)
    ours, theirs = (tensors(SIZES, dtype, dtype, moment, master) for _ in range(2))
    factor = torch.tensor(0.5)
    update(adamw_(library, never), ours, how, factor)
    update(plain, theirs, how, factor)
    for name in ("weights", "first", "second", "masters"):
        for one, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            if one is None:
                continue
            if one.dtype == torch.float32:
                torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)
            else:
                # The same random bits: only a value within a few float32 roundings of a border may fall to the other side.
                assert (one != other).float().mean() < 0.01


def test_moments_and_weights_against_float64(library: ctypes.CDLL, isa: str) -> None:
    t = tensors((1000,), torch.float32, torch.float32, torch.float32, False)
    w, g, m, v = (x[0].double().clone() for x in (t.weights, t.gradients, t.first, t.second))
    update(adamw_(library, never), t, HOW)
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * g.square()
    w = w * (1 - 0.02 * 0.1) - 0.02 * (m / (1 - 0.9**3)) / ((v / (1 - 0.95**3)).sqrt() + 1e-6)
    for one, exact in ((t.weights, w), (t.first, m), (t.second, v)):
        torch.testing.assert_close(one[0].double(), exact, rtol=1e-6, atol=1e-7)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(size=st.integers(1, 70), seed=st.integers(0, 2**62))
def test_random_rounding_takes_a_neighbour(library: ctypes.CDLL, isa: str, size: int, seed: int) -> None:
    weight, zero = draw(seed % 1000, size, torch.bfloat16), torch.zeros(size, dtype=torch.bfloat16)
    before = weight.clone()
    how = AdamWStep(lr=1e-3, beta1=0.0, beta2=0.0, eps=1e-8, weight_decay=0.5, at_random=True)
    adamw_(library, never)([weight], [zero], [zero.clone()], [zero.clone()], [None], [1], [seed], how)
    exact = before.float() * (1 - 1e-3 * 0.5)
    down = (exact.view(torch.int32) & -65536).view(torch.float32)
    up = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)
    assert ((weight.float() == down) | (weight.float() == up) | (weight.float() == exact)).all()


def test_what_is_not_finite_stays_so(library: ctypes.CDLL, isa: str) -> None:
    weight = torch.ones(40, dtype=torch.bfloat16)
    gradient = torch.ones(40, dtype=torch.bfloat16)
    gradient[5], gradient[37] = float("nan"), float("inf")
    moments = [torch.zeros(40, dtype=torch.bfloat16) for _ in range(2)]
    how = AdamWStep(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, at_random=True)
    adamw_(library, never)([weight], [gradient], [moments[0]], [moments[1]], [None], [1], [9], how)
    assert weight.isfinite().sum() == 38
    assert moments[0][5].isnan()
    assert moments[0][37].isinf()


def test_results_do_not_depend_on_threads(library: ctypes.CDLL, isa: str, threads: int) -> None:
    how = AdamWStep(HOW.lr, HOW.beta1, HOW.beta2, HOW.eps, HOW.weight_decay, at_random=True)
    whole, parts = (tensors((100_000,), torch.bfloat16, torch.bfloat16, torch.bfloat16, False) for _ in range(2))
    update(adamw_(library, never), whole, how)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    update(adamw_(library, never), parts, how)
    torch.set_num_threads(before)
    assert whole.weights[0].equal(parts.weights[0])
    assert whole.second[0].equal(parts.second[0])


def test_what_it_does_not_take_goes_to_the_fallback(library: ctypes.CDLL) -> None:
    seen = []
    t = tensors((8, 9), torch.float32, torch.float32, torch.float32, False)
    t.weights[1] = t.weights[1].double()
    before = t.weights[0].clone()
    update(adamw_(library, lambda weights, *rest: seen.append(weights)), t, HOW)
    assert len(seen) == 1
    assert seen[0][0] is t.weights[1]
    assert not t.weights[0].equal(before)
