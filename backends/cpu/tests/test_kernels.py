from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pegboard_cpu import kernels


@pytest.mark.parametrize("rows", [1, 4, 5, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    shapes = [(rows, 24), (16, 24)] + [(16,)] * bias
    narrow = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    exact = [t.detach().double().requires_grad_() for t in narrow]
    out, wanted = kernels.linear(*narrow), F.linear(*exact)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), wanted, rtol=8e-3, atol=1e-2)
    upstream = torch.randn(rows, 16).bfloat16()
    got = torch.autograd.grad(out, narrow, upstream)
    for a, b in zip(got, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=8e-3, atol=1e-2)


def test_one_rounding_beats_many() -> None:
    """A product of ones and 2^-9 in 4,096 terms: sums in bfloat16 would stall, float32 gives 8 exactly."""
    x, weight = torch.ones(8, 4096).bfloat16(), torch.full((2, 4096), 2.0**-9).bfloat16()
    assert (kernels.linear(x, weight) == 8).all()


def test_frozen_weight_keeps_no_input() -> None:
    kept = []
    x = torch.randn(8, 6).bfloat16().requires_grad_()
    weight = torch.randn(5, 6).bfloat16()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.shape, t.dtype)) or t, lambda t: t):
        kernels.linear(x, weight)
    assert kept == [((5, 6), torch.bfloat16)]


@pytest.mark.parametrize("shape", [(1, 48), (48,), (5, 48), (1, 3, 16), (0, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(len(shape))
    x, residual = torch.randn(shape, dtype=torch.float64).to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype)
    weight = torch.randn(shape[-1], dtype=torch.float64).to(dtype)
    total = x + residual
    wide = total.double()
    wanted = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    normed, kept = kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(kept, total)
    for out in (normed, kernels.rms_norm(total, weight, 1e-5)):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)


def test_a_norm_of_one_row_spreads_what_is_not_finite() -> None:
    for wrong in (float("nan"), float("inf")):
        assert not kernels.rms_norm(torch.tensor([[1.0, wrong]]), torch.ones(2), 1e-5).isfinite().all()


def test_one_row_with_a_gradient() -> None:
    x = torch.randn(1, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: kernels.rms_norm(t, weight, 1e-5), (x,))


@pytest.mark.parametrize("total", [torch.float32, torch.bfloat16])
def test_a_product_is_added_with_one_rounding(total: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(33, 12).bfloat16(), torch.randn(33, 7).bfloat16()
    out = torch.ones(12, 7, dtype=total)
    wanted = 1 + a.double().t() @ b.double()
    kernels.add_product_(out, a, b)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5 if total == torch.float32 else 8e-3, atol=1e-5)
