from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pegboard import ops, reference
from pegboard_triton import norm

DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 17), (7, 64), (33, 128), (2, 5, 80), (5, 1000), (0, 24)])
@pytest.mark.parametrize("op", ["rms_norm", "offset_rms_norm"])
def test_norms(
    compare: Callable[..., None], device: torch.device, op: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, weight = draw(*shape, dtype=dtype, device=device), draw(shape[-1], dtype=dtype, device=device, seed=1)
    compare(
        lambda x, w: norm.replacements("train", dtype)[op](x, w, 1e-5),
        lambda x, w: reference.OPS[op](x, w, 1e-5),
        [x, weight],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_with_a_residual(compare: Callable[..., None], device: torch.device, rows: int, dtype: torch.dtype) -> None:
    x, residual, weight = (
        draw(*shape, dtype=dtype, device=device, seed=i) for i, shape in enumerate([(rows, 72), (rows, 72), (72,)])
    )
    compare(
        lambda *x: norm.add_rms_norm(*x, 1e-6),
        lambda *x: reference.OPS["add_rms_norm"](*x, 1e-6),
        [x, residual, weight],
        scale=1.5,  # the sum is rounded before it is normed
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_beside_others(compare: Callable[..., None], device: torch.device, dtype: torch.dtype) -> None:
    """Heads of q within q, k and v; and columns of a wider matrix."""
    weight = draw(16, dtype=dtype, device=device, seed=1)
    for x in (
        draw(7, 9, 16, dtype=dtype, device=device)[:, 2:6],
        draw(7, 40, dtype=dtype, device=device)[:, 8:24],
        draw(7, 4, 32, dtype=dtype, device=device)[..., 3:19],
    ):
        compare(lambda x, w: norm.rms_norm(x, w, 1e-5), lambda x, w: reference.OPS["rms_norm"](x, w, 1e-5), [x, weight])


def test_a_frozen_weight_has_no_gradient(compare: Callable[..., None], device: torch.device) -> None:
    x, residual, weight = (draw(*s, dtype=torch.float32, device=device) for s in ((9, 24), (9, 24), (24,)))
    compare(
        lambda *x: norm.add_rms_norm(*x, 1e-5),
        lambda *x: reference.OPS["add_rms_norm"](*x, 1e-5),
        [x, residual, weight],
        gradients=[0, 1],
    )
    compare(
        lambda *x: norm.rms_norm(*x, 1e-5),
        lambda *x: reference.OPS["rms_norm"](*x, 1e-5),
        [x, weight],
        gradients=[1],
    )


def test_the_weights_gradient_is_the_same_every_time(device: torch.device) -> None:
    x, weight = draw(301, 40, dtype=torch.float32, device=device), torch.ones(40, device=device, requires_grad=True)
    upstream = draw(301, 40, dtype=torch.float32, device=device, seed=3)
    found = [torch.autograd.grad(norm.rms_norm(x, weight, 1e-5), weight, upstream)[0] for _ in range(3)]
    assert found[0].equal(found[1]) and found[1].equal(found[2])


def test_only_the_input_is_kept(device: torch.device) -> None:
    kept: list[Tensor] = []
    x, weight = (draw(*s, dtype=torch.bfloat16, device=device).requires_grad_() for s in ((9, 24), (24,)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm.rms_norm(x, weight, 1e-5)
        _, total = norm.add_rms_norm(x, x, weight, 1e-5)
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in (x, weight, total, weight)]


def test_large_values_do_not_overflow(device: torch.device) -> None:
    x = torch.full((3, 48), 1e18, device=device)
    out = norm.rms_norm(x, torch.ones(48, device=device), 1e-5)
    torch.testing.assert_close(out, torch.ones_like(x))


@pytest.mark.parametrize("odd", ["float64", "strided"])
def test_what_the_kernel_does_not_take_is_torchs(device: torch.device, odd: str) -> None:
    x, weight = draw(5, 24, dtype=torch.float32, device=device), torch.ones(24, device=device)
    if odd == "float64":
        x, weight = x.double(), weight.double()
    else:
        x = draw(24, 5, dtype=torch.float32, device=device).t()
    torch.testing.assert_close(norm.rms_norm(x, weight, 1e-5), ops.rms_norm(x, weight, 1e-5))
    torch.testing.assert_close(norm.add_rms_norm(x, x, weight, 1e-5), ops.add_rms_norm(x, x, weight, 1e-5))
