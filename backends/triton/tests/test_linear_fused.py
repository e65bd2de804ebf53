from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard_triton import linear_fused

USE = {"BLOCK_N": 2, "BLOCK_K": 32, "num_warps": 1}
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 1.2e-2}
"""Two roundings, which the interpreter does by cutting."""


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(out: Tensor, exact: Tensor) -> bool:
    return bool((out.double() - exact).norm() <= TOLERANCES[out.dtype] * exact.norm())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 32), (9, 53), (4, 100)])
@pytest.mark.parametrize("bias", [False, True])
def test_one_row(outputs: int, inputs: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
    how: dict[str, Any] = {"dtype": dtype, "device": device}
    x, residual = (draw(1, inputs, seed=seed, **how) for seed in (0, 1))
    scales, weight = draw(inputs, seed=2, **how), draw(outputs, inputs, seed=3, **how)
    added = draw(outputs, seed=4, **how) if bias else None
    for kind in ("norm", "offset"):
        out, total = linear_fused.launch(kind, x, residual, scales, 1e-5, weight, added, USE)
        wanted, kept = reference.OPS["norm_linear"](x, residual, scales, 1e-5, kind == "offset", weight, added)
        assert close(out, wanted)
        assert total is not None and close(total, kept)
    gate_up = draw(1, 2 * inputs, seed=5, **how)
    for kind in ("silu", "gelu_tanh"):
        out, _ = linear_fused.launch(kind, gate_up, None, None, 0.0, weight, added, USE)
        assert close(out, reference.OPS["gated_linear"](gate_up, weight, added, kind))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("pays", [0, 1])
def test_the_ops(rows: int, pays: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not pay, and more rows, are computed one after the other."""
    monkeypatch.setattr(linear_fused, "choice", lambda *_, **__: {"pays": pays, **USE})
    calls: list[str] = []
    launch = linear_fused.launch
    monkeypatch.setattr(linear_fused, "launch", lambda kind, *rest: (calls.append(kind), launch(kind, *rest))[1])
    how: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    x, residual, scales = draw(rows, 48, seed=0, **how), draw(rows, 48, seed=1, **how), draw(48, seed=2, **how)
    weight, bias, gate_up = draw(9, 48, seed=3, **how), draw(9, seed=4, **how), draw(rows, 96, seed=5, **how)
    for offset in (False, True):
        out, total = linear_fused.norm_linear(x, residual, scales, 1e-5, offset, weight, bias)
        wanted, kept = reference.OPS["norm_linear"](x, residual, scales, 1e-5, offset, weight, bias)
        assert close(out, wanted)
        assert close(total, kept)
    for activation in ("silu", "gelu_tanh"):
        out = linear_fused.gated_linear(gate_up, weight, None, activation)
        assert close(out, reference.OPS["gated_linear"](gate_up, weight, None, activation))
    assert calls == (["norm", "offset", "silu", "gelu_tanh"] if pays and rows == 1 else [])
