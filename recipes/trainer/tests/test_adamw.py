from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegboard.ops import kernel_table
from pegboard_trainer.adamw import AdamW, AdamWFactory, mix
from pegboard_trainer.adamw_op import adamw_, random_bits
from pegboard_trainer.options import AdamWOptions

GRADIENTS = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(6)]


def parameters(dtype: torch.dtype) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(9)
    shapes = {"weight": (3, 4), "bias": (4,), "other": (2, 3, 4)}
    return [
        (name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)))
        for name, shape in shapes.items()
    ]


def descend(named: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer) -> None:
    for number, gradient in enumerate(GRADIENTS):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - number / 10)
        for _, parameter in named:
            parameter.grad = gradient[0].expand(parameter.shape).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_weights_move_as_with_torchs_adamw(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    descend(ours, AdamWFactory(AdamWOptions(lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)).build(ours))
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in theirs if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for _, p in theirs if p.dim() < 2], "weight_decay": 0.0},
    ]
    descend(theirs, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6, foreach=False))
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_copy_keeps_what_16_bits_lose(dtype: torch.dtype) -> None:
    """The weights are those of a float32 run that sees the same rounded gradients, rounded once at the end."""
    narrow = parameters(dtype)
    wide = [(name, nn.Parameter(p.detach().float())) for name, p in narrow]
    options = AdamWOptions(lr=0.01)
    descend(narrow, AdamWFactory(options).build(narrow))
    optimizer = AdamWFactory(options).build(wide)
    for number, gradient in enumerate(GRADIENTS):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - number / 10)
        for _, parameter in wide:
            parameter.grad = gradient[0].expand(parameter.shape).to(dtype).float()
        optimizer.step()
    for (_, one), (_, other) in zip(narrow, wide, strict=True):
        assert one.equal(other.to(dtype))


def small_updates(rounding: str, steps: int = 400, seed: int = 0) -> Tensor:
    """A weight of 1 in bfloat16, moved down by 1/2000 of its spacing of 1/128 … 1/256 in every step."""
    parameter = nn.Parameter(torch.ones(2000, 1, dtype=torch.bfloat16))
    options = AdamWOptions(lr=1e-5, weight_decay=0.0, rounding=rounding, seed=seed)  # type: ignore[arg-type]
    optimizer = AdamW([{"params": [parameter], "weight_decay": 0.0}], options)
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return parameter.detach().float()


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    moved = 1 - small_updates("stochastic")
    # 400 steps of 1e-5 each. A weight is a sum of rare jumps of 1/256 (about one of them): standard error of the mean 1e-4.
    assert moved.mean().item() == pytest.approx(400e-5, abs=4e-4)
    assert moved.unique().numel() > 2
    assert (1 - small_updates("nearest")).abs().max() == 0


def test_stochastic_rounding_depends_on_its_seed_alone() -> None:
    assert small_updates("stochastic", 20).equal(small_updates("stochastic", 20))
    assert not small_updates("stochastic", 20).equal(small_updates("stochastic", 20, seed=1))


def test_rounded_values_are_neighbours_and_exact_ones_stay() -> None:
    from pegboard_trainer.adamw_op import round_at_random

    value = torch.tensor([1.0, -2.5, 1.001, -1.001, 0.0, float("inf"), float("nan")]).repeat(64, 1)
    target = torch.empty_like(value, dtype=torch.bfloat16)
    round_at_random(target, value, 7)
    out = target.float()
    assert (out[:, [0, 1, 4, 5]] == value[:, [0, 1, 4, 5]]).all()
    assert out[:, 6].isnan().all()
    assert sorted(out[:, 2].unique().tolist()) == [1.0, 1.0078125]
    assert sorted(out[:, 3].unique().tolist()) == [-1.0078125, -1.0]


def test_the_mix_is_the_same_in_every_process_and_tells_its_arguments_apart() -> None:
    code = "from pegboard_trainer.adamw import mix; print(mix(1, 2, 3))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) == mix(1, 2, 3)
    values = {mix(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(values) == 512
    assert max(values) < 2**63


def test_a_parameter_without_gradient_stays() -> None:
    named = parameters(torch.float32)
    before = named[0][1].detach().clone()
    optimizer = AdamWFactory(AdamWOptions(lr=1.0)).build(named)
    for _, parameter in named[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert named[0][1].equal(before)
    assert list(optimizer.state) == [named[2][1], named[1][1]]


def test_gradients_count_by_the_factor_of_one_step() -> None:
    scaled, plain = parameters(torch.bfloat16), parameters(torch.bfloat16)
    one, other = (AdamWFactory(AdamWOptions(lr=0.1)).build(named) for named in (scaled, plain))
    for optimizer, named, size in ((one, scaled, 4.0), (other, plain, 1.0)):
        for _, parameter in named:
            parameter.grad = torch.full_like(parameter, size)
        if size != 1:
            optimizer.factor = torch.tensor(1 / size)  # type: ignore[attr-defined]
        optimizer.step()
        assert optimizer.factor is None  # type: ignore[attr-defined]
    assert all(a.equal(b) for (_, a), (_, b) in zip(scaled, plain, strict=True))
    assert all((p.grad == 4).all() for _, p in scaled)  # type: ignore[union-attr]


def test_random_bits_are_even_and_independent_of_their_neighbours() -> None:
    bits = random_bits(1 << 16, 3 << 40 | 17, torch.device("cpu"))
    ones = torch.stack([(bits >> place & 1).double().mean() for place in range(32)])
    assert (ones - 0.5).abs().max() < 0.01  # five standard errors
    for other in (
        bits.roll(1),
        random_bits(1 << 16, 3 << 40 | 18, torch.device("cpu")),
        random_bits(1 << 16, 4 << 40 | 17, torch.device("cpu")),
    ):
        low, high = (bits & 0xFFFF).double(), (other & 0xFFFF).double()
        assert torch.corrcoef(torch.stack([low, high]))[0, 1].abs() < 0.02


def test_the_kernels_that_a_factory_is_given_take_the_steps() -> None:
    taken = []

    def counted(weights: Any, *rest: Any) -> None:
        taken.append(len(weights))
        adamw_(weights, *rest)

    named = parameters(torch.float32)
    factory = AdamWFactory(AdamWOptions(lr=0.1))
    factory.kernels = kernel_table({"adamw_": counted})
    descend(named, factory.build(named))
    assert taken == [2, 1] * len(GRADIENTS)
