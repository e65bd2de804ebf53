from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pegboard import ops, reference
from pegboard_triton.rotary import rotary


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def angles(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    half = draw(tokens, 1, width // 2, dtype=torch.float64, device=device, seed=7) * 3
    cos, sin = half.cos(), half.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "width"),
    [(1, 1, 2, 2), (5, 3, 8, 8), (3, 40, 16, 16), (2, 5, 20, 12), (7, 4, 80, 48), (0, 2, 8, 8)],
)
def test_values_and_gradients(
    compare: Callable[..., None],
    device: torch.device,
    tokens: int,
    heads: int,
    dim: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    x = draw(tokens, heads, dim, dtype=dtype, device=device)
    compare(rotary, reference.OPS["rotary"], [x, *angles(tokens, width, dtype, device)], gradients=[0])


def test_heads_beside_others(compare: Callable[..., None], device: torch.device) -> None:
    x = draw(7, 9, 16, dtype=torch.float32, device=device)[:, 1:7]
    compare(rotary, reference.OPS["rotary"], [x, *angles(7, 16, torch.float32, device)], gradients=[0])
    columns = draw(7, 3, 24, dtype=torch.float32, device=device)[..., 3:19]
    compare(rotary, reference.OPS["rotary"], [columns, *angles(7, 16, torch.float32, device)], gradients=[0])


def test_gradients_of_parts_beside_others(device: torch.device) -> None:
    """The upstream gradient of a slice may come as a view with strides of its own."""
    x = draw(5, 6, 8, dtype=torch.float32, device=device).requires_grad_()
    cos, sin = angles(5, 8, torch.float32, device)
    upstream = draw(5, 9, 8, dtype=torch.float32, device=device, seed=3)[:, :6]
    (found,) = torch.autograd.grad(rotary(x, cos, sin), x, upstream)
    (wanted,) = torch.autograd.grad(ops.rotary(x, cos, sin), x, upstream)
    torch.testing.assert_close(found, wanted)


def test_gradients_by_the_angles_are_torchs(device: torch.device) -> None:
    x = draw(5, 6, 8, dtype=torch.float32, device=device)
    cos, sin = (t.requires_grad_() for t in angles(5, 8, torch.float32, device))
    found = torch.autograd.grad(rotary(x, cos, sin).sum(), [cos, sin])
    wanted = torch.autograd.grad(ops.rotary(x, cos, sin).sum(), [cos, sin])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("odd", ["float64", "columns"])
def test_what_the_kernel_does_not_take_is_torchs(device: torch.device, odd: str) -> None:
    dtype = torch.float64 if odd == "float64" else torch.float32
    x = draw(5, 6, 8, dtype=dtype, device=device)
    x = x if odd == "float64" else x.transpose(1, 2).contiguous().transpose(1, 2)
    cos, sin = angles(5, 8, dtype, device)
    torch.testing.assert_close(rotary(x, cos, sin), ops.rotary(x, cos, sin))
