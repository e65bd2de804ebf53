from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from pegboard import ops
from pegboard.errors import PluginError


@pytest.fixture
def added() -> Iterator[str]:
    name = "test_only_op"
    ops.register(name, "(x) -> x")(abs)
    yield name
    ops._OPS.pop(name)


def test_register_and_replace(added: str) -> None:
    assert ops.registered()[added].schema == "(x) -> x"
    assert ops.kernel_table().test_only_op(-1) == 1
    assert ops.kernel_table({added: float}).test_only_op("2") == 2.0


def test_same_function_may_be_registered_again_but_no_other(added: str) -> None:
    ops.register(added, "(x) -> x")(abs)
    with pytest.raises(ValueError, match=r"test_only_op.*twice"):
        ops.register(added, "(x) -> x")(len)


def test_unknown_replacement_is_named() -> None:
    with pytest.raises(PluginError, match=r"the platform 'x' replaces the op 'rotery'.*rotary"):
        ops.kernel_table({"rotery": abs}, owner="the platform 'x'")


@pytest.mark.parametrize("width", [6, 8])
def test_rotary_is_a_rotation_of_complex_pairs(width: int) -> None:
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    angles = torch.randn(5, 1, width // 2, dtype=torch.float64)
    cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    pairs = torch.complex(x[..., : width // 2].clone(), x[..., width // 2 : width].clone())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    wanted = torch.cat((turned.real, turned.imag, x[..., width:]), -1)
    torch.testing.assert_close(ops.rotary(x, cos, sin), wanted)


def test_add_rms_norm() -> None:
    x, residual, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((4, 6), (4, 6), (6,)))
    total = x + residual
    wanted = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    normed, kept = ops.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(normed, wanted)
    torch.testing.assert_close(kept, total)


def test_silu_mul_gradient() -> None:
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.silu_mul, (x,))
    gate, up = x.detach().chunk(2, -1)
    torch.testing.assert_close(ops.silu_mul(x).detach(), gate * gate.sigmoid() * up)
    with torch.no_grad():
        torch.testing.assert_close(ops.silu_mul(x), ops.silu_mul(x.detach()))


def test_gelu_tanh_mul_gradient() -> None:
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.gelu_tanh_mul, (x,))
    with torch.no_grad():
        torch.testing.assert_close(ops.gelu_tanh_mul(x), ops.gelu_tanh_mul(x.detach()))


@pytest.mark.parametrize("op", [ops.silu_mul, ops.gelu_tanh_mul])
def test_gates_keep_only_their_input(op: Callable[[torch.Tensor], torch.Tensor]) -> None:
    saved: list[torch.Size] = []
    x = torch.randn(3, 10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        op(x)
    assert saved == [x.shape]


def test_offset_norm_keeps_the_bits_of_a_small_weight() -> None:
    weight = torch.tensor([2**-10, 2**-12]).bfloat16()
    x = torch.ones(1, 2, dtype=torch.bfloat16) * 1024
    # 1 + 2**-10 is no bfloat16; the product with the normed row is made in float32 and rounded once.
    wide = ops.offset_rms_norm(x.float(), weight.float(), 1e-6)
    assert (wide[0] > 1).all()
    torch.testing.assert_close(ops.offset_rms_norm(x, weight, 1e-6), wide.bfloat16(), rtol=0, atol=0)
