from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegboard import ops
from pegboard.nn import GatedMLP
from pegboard.ops import kernel_table
from pegboard.types import ForwardContext


class Adapted(nn.Module):
    """A layer in the place of `down_proj`, as an adapter's is."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        out: Tensor = self.base(x, ctx) * 2
        return out


@pytest.fixture
def mlp() -> GatedMLP:
    torch.manual_seed(0)
    made = GatedMLP(6, 10, True).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_gate_and_product_are_one_op_where_a_platform_has_it(mlp: GatedMLP, grad: bool, adapted: bool) -> None:
    """With a gradient too; never around a layer that does more than a product."""
    calls: list[str] = []

    def joined(gate_up: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        calls.append(activation)
        return ops.gated_linear(gate_up, weight, bias, activation)

    x, ctx = torch.randn(5, 6, dtype=torch.float64), ForwardContext(torch.arange(5), [])
    gate, up = F.linear(x, mlp.gate_proj.weight, mlp.gate_proj.bias), F.linear(x, mlp.up_proj.weight, mlp.up_proj.bias)
    wanted = F.linear(F.silu(gate) * up, mlp.down_proj.weight, mlp.down_proj.bias)
    if adapted:
        mlp.down_proj = Adapted(mlp.down_proj)  # type: ignore[assignment]
        wanted = wanted * 2
    for table, count in ((kernel_table(), 0), (kernel_table({"gated_linear": joined}), 0 if adapted else 1)):
        for module in mlp.modules():
            module.kernels = table  # type: ignore[assignment]
        calls.clear()
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(mlp(x, ctx), wanted)
        assert calls == ["silu"] * count
