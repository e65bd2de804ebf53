from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pegboard import ops, reference
from pegboard_triton import gated

# What the interpreter computes with says so where a sigmoid is 0 or 1.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")

OPS: dict[str, Callable[[Tensor], Tensor]] = {"silu_mul": gated.silu_mul, "gelu_tanh_mul": gated.gelu_tanh_mul}


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size"), [(1, 3), (3, 7), (20, 128), (2, 1031), (0, 8)])
def test_values_and_gradients(
    compare: Callable[..., None], device: torch.device, op: str, rows: int, size: int, dtype: torch.dtype
) -> None:
    compare(OPS[op], reference.OPS[op], [draw(rows, 2 * size, dtype=dtype, device=device) * 3])


def test_rows_beside_others(compare: Callable[..., None], device: torch.device, op: str) -> None:
    compare(OPS[op], reference.OPS[op], [draw(5, 40, dtype=torch.float32, device=device)[:, 4:30]])


def test_far_values(device: torch.device, op: str) -> None:
    x = torch.tensor([[-1e4, 1e4, -100.0, 90.0, 1.0, 1.0, 1.0, 1.0]], device=device)
    torch.testing.assert_close(OPS[op](x), torch.tensor([[0.0, 1e4, 0.0, 90.0]], device=device))


def test_the_gradient_takes_the_inputs_memory(device: torch.device, op: str) -> None:
    """What another function made is written over, and can then not be used in a second backward pass."""
    leaf = draw(3, 12, dtype=torch.float32, device=device).requires_grad_()
    made = leaf * 1.0
    seen: list[Tensor] = []
    made.register_hook(seen.append)
    out = OPS[op](made)
    out.sum().backward(retain_graph=True)
    assert seen[0].data_ptr() == made.data_ptr()
    right = reference.OPS[op](leaf.detach().double().requires_grad_())
    exact = leaf.detach().double().requires_grad_()
    reference.OPS[op](exact).sum().backward()
    assert leaf.grad is not None and exact.grad is not None and right is not None
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("kind", ["leaf", "view"])
def test_what_others_see_is_left_as_it_is(device: torch.device, op: str, kind: str) -> None:
    leaf = draw(3, 12, dtype=torch.float32, device=device).requires_grad_()
    given = leaf if kind == "leaf" else (leaf * 1.0)[1:]
    before = given.detach().clone()
    OPS[op](given).sum().backward()
    assert given.equal(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_with_the_product_after_it(
    compare: Callable[..., None], device: torch.device, op: str, biased: bool, dtype: torch.dtype
) -> None:
    """The gated values of the backward pass are made anew; inputs that others see stay as they are."""
    bias = draw(5, dtype=dtype, device=device, seed=2) if biased else None
    inputs = [draw(7, 48, dtype=dtype, device=device), draw(5, 24, dtype=dtype, device=device, seed=1) / 5, bias]
    before = inputs[0].clone()

    def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(reference.OPS[op](x), weight, bias)

    compare(lambda *x: gated.gated_linear(*x, op.removesuffix("_mul")), exact, inputs, scale=2.0)
    assert inputs[0].equal(before)


def test_the_product_keeps_its_input_alone_and_writes_over_it(device: torch.device, op: str) -> None:
    leaf = draw(7, 48, dtype=torch.float32, device=device).requires_grad_()
    weight = draw(5, 24, dtype=torch.float32, device=device).requires_grad_()
    made, kept, seen = leaf * 1.0, [], []
    made.register_hook(seen.append)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        out = gated.gated_linear(made, weight, None, op.removesuffix("_mul"))
    assert sorted(kept) == sorted([made.data_ptr(), weight.data_ptr()])
    address = made.data_ptr()
    out.square().sum().backward()
    assert seen[0].data_ptr() == address
    exact = [t.detach().double().requires_grad_() for t in (leaf, weight)]
    F.linear(reference.OPS[op](exact[0]), exact[1]).square().sum().backward()
    for mine, right in zip((leaf, weight), exact, strict=True):
        assert mine.grad is not None and right.grad is not None
        torch.testing.assert_close(mine.grad.double(), right.grad, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_computes_neither_gate_nor_product_again(
    device: torch.device, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    compute = gated._gated
    monkeypatch.setattr(gated, "_gated", lambda *x: runs.append(1) or compute(*x))
    x = draw(7, 48, dtype=torch.float32, device=device).requires_grad_()
    weight = draw(5, 24, dtype=torch.float32, device=device).requires_grad_()

    def layer(x: Tensor) -> Tensor:
        return gated.gated_linear(x * 1.5, weight, None, op.removesuffix("_mul"))

    found = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        runs.clear()
        found.append(torch.autograd.grad(run(x).square().sum(), [x, weight]))
        assert len(runs) == 1
    for one, other in zip(*found, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_gradient_by_one_of_both(device: torch.device, op: str, frozen: int) -> None:
    inputs = [draw(7, 48, dtype=torch.float32, device=device), draw(5, 24, dtype=torch.float32, device=device)]
    leaf = inputs[1 - frozen].requires_grad_()
    (found,) = torch.autograd.grad(gated.gated_linear(*inputs, None, op.removesuffix("_mul")).square().sum(), leaf)
    (wanted,) = torch.autograd.grad(F.linear(getattr(ops, op)(inputs[0]), inputs[1]).square().sum(), leaf)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("odd", ["float64", "columns"])
def test_what_the_kernel_does_not_take_is_torchs(device: torch.device, op: str, odd: str) -> None:
    x: Any = draw(6, 8, dtype=torch.float32, device=device)
    x = x.double() if odd == "float64" else x.t().contiguous().t()
    torch.testing.assert_close(OPS[op](x), getattr(ops, op)(x))
