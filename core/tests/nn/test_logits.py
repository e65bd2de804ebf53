"""The ops of losses against autograd over a softmax in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard import reference
from pegboard.nn import logits as ops
from pegboard.nn.logits import capped

ROWS, VOCAB = 5, 23


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


def drawn(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64) * 4).to(dtype)
    return logits, torch.randint(VOCAB, (ROWS,), generator=generator)


def close(out: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_cross_entropy(dtype: torch.dtype, softcap: float | None) -> None:
    logits, targets = drawn(dtype)
    exact = logits.double().clone().requires_grad_()
    losses = F.cross_entropy(capped(exact, softcap), targets, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), exact)
    logps, written = ops.cross_entropy_(logits, targets, softcap)
    assert logps.dtype == torch.promote_types(dtype, torch.float32)
    close(logps, -losses.detach(), torch.promote_types(dtype, torch.float32))
    assert written.data_ptr() == logits.data_ptr()
    close(logits, slope, dtype)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_columns_in_two_parts_are_as_the_whole(dtype: torch.dtype, softcap: float | None) -> None:
    """What two ranks find in their columns adds up to what one finds in all."""
    logits, targets = drawn(dtype)
    factor = torch.linspace(-1, 2, ROWS, dtype=torch.promote_types(dtype, torch.float32))
    cut = 9
    parts = logits[:, :cut].clone(), logits[:, cut:].clone()
    sums = [ops.logits_sums(part, targets - start, softcap) for part, start in zip(parts, (0, cut), strict=True)]
    norm = torch.logaddexp(sums[0][0], sums[1][0])
    whole = reference.OPS["logits_sums"](logits, targets, softcap)
    close(norm, whole[0], factor.dtype)
    close(sums[0][1] + sums[1][1], whole[1], factor.dtype)
    wanted = reference.OPS["logits_slope_"](logits, targets, whole[0], factor, softcap)
    for part, start in zip(parts, (0, cut), strict=True):
        ops.logits_slope_(part, targets - start, norm, factor, softcap)
    close(torch.cat(parts, 1), wanted, dtype)


def test_scaled_with_one_rounding(dtype: torch.dtype) -> None:
    """A factor that is no bfloat16 counts as it is."""
    x, factor = drawn(dtype)[0], torch.tensor(0.3, dtype=torch.promote_types(dtype, torch.float32))
    for target in (dtype, torch.bfloat16):
        out = ops.scaled(x, factor, target)
        assert out.dtype == target
        torch.testing.assert_close(out, (x.double() * factor.double()).to(target))


@pytest.mark.parametrize("wide", [False, True])
def test_a_product_is_added(dtype: torch.dtype, wide: bool) -> None:
    a, b = drawn(dtype)[0] / 4, drawn(dtype)[0][:, :7] / 4
    total = torch.ones(VOCAB, 7, dtype=torch.promote_types(dtype, torch.float32) if wide else dtype)
    exact = total.double() + a.double().t() @ b.double()
    assert ops.add_product_(total, a, b).data_ptr() == total.data_ptr()
    close(total, exact, dtype)
