"""The core's ops and losses against their oracles, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.nn import Head, loss
from pegboard.ops import registered

GENERATOR = torch.Generator().manual_seed(2)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64).requires_grad_()


def turn(width: int) -> tuple[Tensor, Tensor]:
    angles = torch.randn(5, 1, width // 2, generator=GENERATOR, dtype=torch.float64)
    return torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)


CASES: dict[str, list[Callable[[], tuple[Any, ...]]]] = {
    "linear": [lambda: (rand(5, 6), rand(3, 6), rand(3)), lambda: (rand(0, 6), rand(3, 6), None)],
    "embedding": [lambda: (torch.tensor([3, 0, 3]), rand(4, 6)), lambda: (torch.zeros(0).long(), rand(4, 6))],
    "rms_norm": [lambda: (rand(2, 3, 6), rand(6), 1e-2)],
    "offset_rms_norm": [lambda: (rand(2, 3, 6), rand(6), 1e-2)],
    "add_rms_norm": [lambda: (rand(5, 6), rand(5, 6), rand(6), 1e-2)],
    "rotary": [lambda: (rand(5, 2, 8), *turn(8)), lambda: (rand(5, 2, 8), *turn(6))],
    "silu_mul": [lambda: (rand(5, 8),)],
    "gelu_tanh_mul": [lambda: (rand(5, 8),)],
    "norm_linear": [
        lambda: (rand(5, 6), rand(5, 6), rand(6), 1e-2, False, rand(3, 6), rand(3)),
        lambda: (rand(1, 6), rand(1, 6), rand(6), 1e-2, True, rand(3, 6), None),
    ],
    "gated_linear": [
        lambda: (rand(5, 8), rand(3, 4), rand(3), "silu"),
        lambda: (rand(1, 8), rand(3, 4), None, "gelu_tanh"),
    ],
    "moe_route": [lambda again=again: (rand(5, 7), 3, again) for again in (True, False)]
    + [lambda: (rand(0, 7), 3, True)],
    "grouped_linear": [lambda: (rand(6, 5), rand(4, 3, 5), torch.tensor(ENDS, dtype=torch.int32))],
    "moe": [
        lambda: (rand(4, 6), rand(3, 10, 6), rand(3, 6, 5), torch.tensor([[0, 2], [2, 0], [0, 2], [2, 0]]), rand(4, 2)),
        lambda: (rand(1, 6), rand(3, 10, 6), rand(3, 6, 5), torch.tensor([[1, 0]]), rand(1, 2), "gelu_tanh"),
        lambda: (rand(0, 6), rand(3, 10, 6), rand(3, 6, 5), torch.zeros(0, 2, dtype=torch.int64), rand(0, 2)),
    ],
}
ENDS = [2, 2, 5, 6]


def test_every_op_of_the_core_has_an_oracle() -> None:
    ours = {name for name, op in registered().items() if op.function.__module__.startswith("pegboard.")}
    # How many rows a loss has at once is a choice, not a result.
    assert set(reference.OPS) == ours - {"loss_rows"}
    # Those without gradients, which write to their arguments, have tests of their own (nn/test_logits.py).
    assert set(CASES) == {name for name in ours if registered()[name].differentiable}


@pytest.mark.parametrize(("name", "index"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))])
def test_ops(name: str, index: int) -> None:
    inputs = CASES[name][index]()
    out, wanted = registered()[name].function(*inputs), reference.OPS[name](*inputs)
    torch.testing.assert_close(out, wanted)
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    pairs = zip(out, wanted, strict=True) if isinstance(out, tuple) else [(out, wanted)]
    for a, b in pairs:
        if not a.requires_grad:
            continue
        upstream = torch.randn(a.shape, generator=GENERATOR, dtype=torch.float64)
        got = torch.autograd.grad(a, leaves, upstream, allow_unused=True, materialize_grads=True, retain_graph=True)
        exact = torch.autograd.grad(b, leaves, upstream, allow_unused=True, materialize_grads=True, retain_graph=True)
        torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("rows", [[0, 2, 4], []])
def test_losses(rows: list[int]) -> None:
    head = Head(6, 9)
    head.weight = torch.nn.Parameter(rand(9, 6).detach())
    hidden, targets, chosen = rand(5, 6), torch.tensor([1, 8, 0, 3, 3]), torch.tensor(rows, dtype=torch.int64)
    for name in ("token_logps", "cross_entropy_sum"):
        out = getattr(loss, name)(hidden, head, targets, chosen, chunk=2)
        wanted = getattr(reference, name)(hidden, head.weight, targets, chosen)
        torch.testing.assert_close(out, wanted)
        grads = [
            torch.autograd.grad(x.sum(), [hidden, head.weight], allow_unused=True, materialize_grads=True)
            for x in (out, wanted)
        ]
        torch.testing.assert_close(*grads)
