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
