"""8-bit moments: codes and updates are torchao's, whose optimizer is run step by step without its compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pegboard.blockwise import dynamic_table
from pegboard_adam8bit.optimizer import Adam8bitFactory
from pegboard_adam8bit.options import Adam8bitOptions

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

LR, DECAY, BETAS, EPS = 0.01, 0.1, (0.9, 0.99), 1e-8


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_torchaos(signed: bool) -> None:
    from torchao.optim.quant_utils import create_dynamic_map, dequant_with_qmap, quantize_8bit_with_qmap, scale_tensor

    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    values = values if signed else values.square()
    table, qmap = dynamic_table(signed=signed), torch.tensor(create_dynamic_map(signed=signed))
    assert torch.equal(table.values, qmap)
    codes, scales = table.quantise(values, 256)
    scaled, scale = scale_tensor(values, 256)
    theirs = quantize_8bit_with_qmap(scaled, qmap)
    assert torch.equal(scales, scale)
    # Where a value lies in the middle of two entries to the last bit, either is as near.
    assert (codes.view(theirs.shape) != theirs).float().mean() < 1e-3
    torch.testing.assert_close(
        table.dequantise(theirs.view(-1), scales, 256).view(64, 256), dequant_with_qmap(theirs, qmap, scale)
    )


def gradients(step: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 + step)
    size = torch.logspace(-2, 0, 64 * 256).view(64, 256)
    return size * (1 + torch.randn(64, 256, generator=draw))


def torchao_run(steps: int) -> torch.Tensor:
    from torchao.optim.adam import single_param_adam
    from torchao.optim.subclass_8bit import OptimState8bit

    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    first = OptimState8bit.zeros((64, 256), True, 256, "cpu")
    second = OptimState8bit.zeros((64, 256), False, 256, "cpu")
    count = torch.tensor(0.0)
    for step in range(steps):
        count += 1
        single_param_adam(
            weight, gradients(step), count, first, second, None, torch.tensor(LR), *BETAS, DECAY, EPS, True, False
        )
    return weight


def run(optimizer: Any, parameter: nn.Parameter, steps: int) -> torch.Tensor:
    for step in range(steps):
        parameter.grad = gradients(step).to(parameter.dtype)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_updates_are_as_near_to_float64_as_torchaos(steps: int) -> None:
    start = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    ours = nn.Parameter(start.clone())
    options = Adam8bitOptions(lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS)
    mine = run(Adam8bitFactory(options).build([("w", ours)]), ours, steps)
    wide = nn.Parameter(start.double())
    exact = run(torch.optim.AdamW([wide], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY), wide, steps)
    theirs = torchao_run(steps)
    way = (exact - start).norm()
    off, off_theirs = (mine - exact).norm() / way, (theirs - exact).norm() / way
    assert off < 0.03 and off < 1.05 * off_theirs + 1e-6, (float(off), float(off_theirs))
    assert (mine - theirs).norm() / way < 0.03
