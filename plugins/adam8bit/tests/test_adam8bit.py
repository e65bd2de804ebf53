from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from pegboard.blockwise import dynamic_table
from pegboard_adam8bit.optimizer import Adam8bit, Adam8bitFactory
from pegboard_adam8bit.options import Adam8bitOptions
from pegboard_adam8bit.plugin import SPEC
from pegboard_sdk.conformance import PluginSuite
from pegboard_trainer.adamw import AdamWFactory
from pegboard_trainer.checkpoint import Trained, load_step, write_trainer
from pegboard_trainer.options import AdamWOptions

STEPS = 30
Named = list[tuple[str, nn.Parameter]]


class TestAdam8bit(PluginSuite):
    spec = SPEC
    options: ClassVar[Mapping[str, Any]] = {"lr": 0.1}


def parameters(dtype: torch.dtype = torch.float32) -> Named:
    draw = torch.Generator().manual_seed(1)
    shapes = {"weight": (64, 100), "odd": (67, 71), "norm": (100,)}
    return [
        (name, nn.Parameter(torch.randn(s, generator=draw, dtype=torch.float64).to(dtype)))
        for name, s in shapes.items()
    ]


def descend(named: Named, optimizer: torch.optim.Optimizer, steps: range = range(STEPS)) -> None:
    """Gradients of different sizes, with a common direction and noise."""
    for step in steps:
        draw = torch.Generator().manual_seed(1000 + step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / (2 * STEPS))
        for _, parameter in named:
            size = torch.logspace(-4, 0, parameter.numel(), dtype=torch.float64).view(parameter.shape)
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.grad = (size * (1 + noise)).to(parameter.dtype)
        optimizer.step()


def made(named: Named, **options: Any) -> Adam8bit:
    return Adam8bitFactory(Adam8bitOptions(lr=0.01, **options)).build(named)  # type: ignore[return-value]


def moved(named: Named) -> dict[str, torch.Tensor]:
    return {
        name: (p.detach().double() - start.detach().double())
        for (name, p), (_, start) in zip(named, parameters(torch.float64), strict=True)
    }


def test_weights_move_as_with_adamw_in_float64() -> None:
    """Within 3 % of the way that they go (root mean square); those with moments in full precision exactly."""
    small, exact = parameters(), parameters(torch.float64)
    descend(small, made(small, weight_decay=0.1))
    descend(exact, AdamWFactory(AdamWOptions(lr=0.01, weight_decay=0.1)).build(exact))
    for name, way in moved(exact).items():
        off = (moved(small)[name] - way).square().mean().sqrt() / way.square().mean().sqrt()
        assert off < (1e-5 if name == "norm" else 0.03), (name, float(off))


def test_the_first_step_is_that_of_adamw() -> None:
    """Moments are rounded after the update, so that the first one sees none."""
    small, exact = parameters(), parameters()
    descend(small, made(small), range(1))
    descend(exact, AdamWFactory(AdamWOptions(lr=0.01)).build(exact), range(1))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(small, exact, strict=True))


def test_a_moment_takes_a_byte() -> None:
    named = parameters()
    optimizer = made(named)
    descend(named, optimizer, range(2))
    tensors = {name: {k: v for k, v in optimizer.state[p].items() if k != "step"} for name, p in named}
    sizes = {name: {k: (v.dtype, tuple(v.shape)) for k, v in held.items()} for name, held in tensors.items()}
    assert sizes["weight"] == {
        "exp_avg": (torch.uint8, (64, 100)),
        "exp_avg_scales": (torch.float32, (25,)),
        "exp_avg_sq": (torch.uint8, (64, 100)),
        "exp_avg_sq_scales": (torch.float32, (25,)),
    }
    assert sizes["odd"]["exp_avg_scales"] == (torch.float32, (19,))
    assert sizes["norm"]["exp_avg"] == (torch.float32, (100,)) and "exp_avg_scales" not in sizes["norm"]


def test_second_moments_stay_above_zero() -> None:
    """A tiny gradient beside a large one: its second moment lies far below the smallest step of the block."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    optimizer = made([("w", parameter)], smallest=0)
    gradient = torch.full((64, 64), 1e-6)
    gradient[0, 0], gradient[1, 0] = 1.0, 0.0
    for _ in range(3):
        parameter.grad = gradient.clone()
        optimizer.step()
    values = dynamic_table(signed=False).values
    codes = optimizer.state[parameter]["exp_avg_sq"]
    assert values[codes[0, 1].int()] > 0 and codes[1, 0] == 0
    assert parameter.isfinite().all() and parameter.abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_a_saved_run_goes_on_bit_for_bit(tmp_path: Path, dtype: torch.dtype, rounding: str) -> None:
    through, cut = parameters(dtype), parameters(dtype)
    whole = made(through, rounding=rounding)
    descend(through, whole)
    first = made(cut, rounding=rounding)
    descend(cut, first, range(10))
    trainer = tmp_path / "step" / "trainer"
    trainer.mkdir(parents=True)
    write_trainer(trainer, 10, Trained(cut, first), {"identity": {}}, {})
    assert json.loads((trainer / "state.json").read_text())["step"] == 10
    fresh = parameters(dtype)
    second = made(fresh, rounding=rounding)
    load_step(tmp_path / "step", Trained(fresh, second))
    descend(fresh, second, range(10, STEPS))
    for (_, one), (_, other) in zip(through, fresh, strict=True):
        assert torch.equal(one, other)
        held, again = whole.state[one], second.state[other]
        assert held.keys() == again.keys()
        assert held.pop("step") == again.pop("step") == STEPS
        assert all(held[key].dtype == again[key].dtype and torch.equal(held[key], again[key]) for key in held)
