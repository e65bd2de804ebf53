from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pegboard.nn import Linear, LinearGroup


class Pair(nn.Module):
    """Two linears of one input."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.a, self.b = Linear(5, 3, bias), Linear(5, 4, bias)
        self.group = LinearGroup(self, ("a", "b"))
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.double()


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    return Pair(request.param)


def separate(pair: Pair, x: Tensor) -> Tensor:
    return torch.cat([nn.functional.linear(x, layer.weight, layer.bias) for layer in (pair.a, pair.b)], -1)


def gradients(pair: Pair, out: Tensor, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *pair.parameters()]))


def test_unfused_and_fused_agree_with_separate_products(pair: Pair) -> None:
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    wanted = separate(pair, x)
    expected = gradients(pair, wanted, x)
    for fused in (False, True):
        if fused:
            assert pair.group.fuse()
        assert pair.group.fused is fused
        out = pair.group(x)
        torch.testing.assert_close(out, wanted)
        for got, want in zip(gradients(pair, out, x), expected, strict=True):
            torch.testing.assert_close(got, want)


def test_fused_parameters_are_views_that_an_update_reaches(pair: Pair) -> None:
    pair.group.fuse()
    x = torch.randn(2, 5, dtype=torch.float64)
    with torch.no_grad():
        pair.b.weight.add_(1)
    torch.testing.assert_close(pair.group(x), separate(pair, x))
    names = {"a.weight", "b.weight"} if pair.a.bias is None else {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert set(dict(pair.named_parameters())) == names


def test_no_gradient_is_made_for_what_is_frozen(pair: Pair) -> None:
    pair.a.requires_grad_(False)
    pair.group.fuse()
    assert not pair.a.weight.requires_grad and pair.b.weight.requires_grad
    pair.group(torch.randn(2, 5, dtype=torch.float64)).sum().backward()
    assert pair.a.weight.grad is None and pair.b.weight.grad is not None


def test_frozen_group_still_passes_the_gradient_to_its_input(pair: Pair) -> None:
    pair.group.fuse()
    pair.requires_grad_(False)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    pair.group(x).sum().backward()
    torch.testing.assert_close(x.grad, (pair.a.weight.sum(0) + pair.b.weight.sum(0)).expand(2, 5))


def test_cast_dissolves_the_group(pair: Pair) -> None:
    pair.group.fuse()
    pair.float()
    assert not pair.group.fused
    x = torch.randn(2, 5)
    torch.testing.assert_close(pair.group(x), separate(pair, x))
    assert pair.group.fuse()


def test_different_dtypes_cannot_be_fused(pair: Pair) -> None:
    pair.a.float()
    assert not pair.group.fuse() and not pair.group.fused


def test_empty_parameters_are_not_fused() -> None:
    with torch.device("meta"):
        assert not Pair(False).group.fuse()
