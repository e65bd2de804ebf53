"""A layer through these kernels under torch.compile: one graph, the values and gradients of the layer that is not compiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegboard_triton import gated, loss, norm, rotary

# What the interpreter computes with says so where a sigmoid is 0 or 1; torch's compiler warns of what it does itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
]

HIDDEN, HEADS, DIM = 32, 4, 8


def layer(x: Tensor, weights: list[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
    """The element-wise parts of a decoder layer, with products between them; no attention, which is not computed here."""
    first, second, qk, out, gate_up, down = weights
    turned = rotary.rotary((norm.rms_norm(x, first, 1e-5) @ qk).view(-1, HEADS, DIM), cos, sin)
    normed, x = norm.add_rms_norm(turned.reshape(-1, HEADS * DIM) @ out, x, second, 1e-5)
    both = gated.silu_mul(normed @ gate_up) + gated.gelu_tanh_mul(normed @ gate_up)
    return x + both @ down + gated.gated_linear(normed @ gate_up, down.t(), None, "silu")


def inputs(device: torch.device, tokens: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[0] ** 0.5).to(device)

    shapes = [(HIDDEN,), (HIDDEN,), (HIDDEN, HEADS * DIM), (HEADS * DIM, HIDDEN), (HIDDEN, 96), (48, HIDDEN)]
    weights = [draw(*shape).requires_grad_() for shape in shapes]
    half = torch.randn(tokens, 1, DIM // 2, generator=generator)
    cos, sin = torch.cat((half.cos(),) * 2, -1).to(device), torch.cat((-half.sin(), half.sin()), -1).to(device)
    return (torch.randn(tokens, HIDDEN, generator=generator).to(device).requires_grad_(), weights, cos, sin)


def check(device: torch.device, backend: str) -> None:
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (5, 9):
        x, weights, cos, sin = inputs(device, tokens)
        found = []
        for function in (layer, compiled):
            out = function(x, weights, cos, sin)
            upstream = torch.linspace(-1, 1, out.numel(), device=device).view_as(out)
            found.append([out.detach(), *torch.autograd.grad(out, [x, *weights], upstream)])
        for eager, other in zip(*found, strict=True):
            torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_traced_and_differentiated_ahead(device: torch.device) -> None:
    check(device, "aot_eager")


@pytest.mark.gpu
def test_compiled(device: torch.device) -> None:
    check(device, "inductor")


def test_operators_tell_the_truth(device: torch.device) -> None:
    """Schemas, and what is said of results without computing them, against what is computed."""
    x, weights, cos, sin = inputs(device, 6)
    ops = torch.ops.pegboard_triton
    assert loss.cross_entropy_  # registered with its module
    x, weight = x.detach(), weights[0].detach()
    both = torch.randn(6, 32, device=device)
    ids = torch.arange(6, device=device)
    for op, arguments in (
        (ops.rms_norm, (x, weight, 1e-5, False)),
        (ops.add_rms_norm, (x, x + 1, weight, 1e-5)),
        (ops.rms_norm_backward, (x, x + 1, x + 2, weight, 1e-5, True, True)),
        (ops.gated, (both, False)),
        (ops.gated_backward, (both[:, :16].contiguous(), both, True)),
        (ops.gated_backward_, (both, both[:, :16].contiguous(), True)),
        (ops.gated_backward_again_, (both[:, :16].clone(), both, False)),
        (ops.gated_backward_all_, (both.clone(), both[:, :16].clone(), False)),
        (ops.rotary, (x.view(6, HEADS, DIM), cos, sin, False)),
        (ops.logits_sums, (both, ids, 0.0)),
        (ops.logits_slope_, (both, ids, torch.ones(6, device=device), None, 2.0)),
        (ops.cross_entropy_, (both, ids, 0.0)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor"))
