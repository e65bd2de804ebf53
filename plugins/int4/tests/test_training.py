from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import ConfigError
from pegboard.nn import Linear, dense_causal_lm
from pegboard_int4.options import Int4Options, Int4TrainingOptions
from pegboard_int4.plugin import QAT
from pegboard_int4.quantizer import Int4Quantizer, Int4TrainingQuantizer
from pegboard_int4.rounding import round_tokens, round_weight
from pegboard_int4.training import RoundedLinear
from pegboard_sdk.conformance import PluginSuite
from pegboard_sdk.toys.model import TINY, logits, random_model

IDS = torch.tensor([5, 250, 17, 17, 99, 3, 0, 140])


class TestQat(PluginSuite):
    spec = QAT


def quantizer(**options: Any) -> Int4TrainingQuantizer:
    return Int4TrainingQuantizer(Int4TrainingOptions(**{"group": 8, **options}))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-4, 1.0, 300.0]), shift=st.sampled_from([-2.0, 0.0, 2.0]))
def test_rounding_in_float64(seed: int, scale: float, shift: float) -> None:
    """Weights: 15 half steps span -max … max. Inputs: 255 steps span min … max, zero exact."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 32, generator=draw, dtype=torch.float64) * scale
    values, kept = round_weight(weight, 16)
    step = (weight.view(3, 2, 16).abs().amax(2) / 7.5).repeat_interleave(16, 1)
    codes = (values / step).round()
    torch.testing.assert_close(values, codes * step, rtol=1e-12, atol=0)
    assert codes.min() >= -8 and codes.max() <= 7
    error = (values - weight).abs() / step
    assert (error[kept] <= 0.5 + 1e-9).all() and ((error[~kept] >= 0.5 - 1e-9) & (error[~kept] <= 1)).all()
    x = (torch.randn(4, 20, generator=draw, dtype=torch.float64) + shift) * scale
    inputs, inside = round_tokens(x)
    span = x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)
    assert ((inputs - x).abs()[inside] <= ((span / 255)[:, None] * 0.501).expand_as(x)[inside]).all()
    assert round_tokens(torch.zeros(1, 5))[0].tolist() == [[0.0] * 5]


def straight_through(x: torch.Tensor, weight: torch.Tensor, group: int, activations: bool) -> torch.Tensor:
    """The same product composed of torch's own steps: value rounded, gradient of the identity where nothing was cut."""

    def through(value: torch.Tensor, rounded: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        passing = torch.where(kept, value, value.detach())
        return rounded.detach() + passing - passing.detach()

    inputs = through(x, *round_tokens(x.detach())) if activations else x
    return F.linear(inputs, through(weight, *round_weight(weight.detach(), group)))


@pytest.mark.parametrize("activations", [True, False])
@pytest.mark.parametrize("adapted", [True, False])
def test_gradients_pass_straight_through(activations: bool, adapted: bool) -> None:
    torch.manual_seed(0)
    plain = Linear(32, 12, bias=True).double()
    layer = RoundedLinear(plain, group=8, activations=activations)
    x = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
    down, up = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 32), (12, 3)))
    with torch.no_grad():
        plain.weight.copy_(torch.randn(12, 32))
        plain.bias.copy_(torch.randn(12))  # type: ignore[union-attr]
    # By the same sum: the largest of a group lies between two codes, and a last bit decides.
    total = torch.addmm(plain.weight, up, down, alpha=0.5) if adapted else plain.weight
    right = straight_through(x, total, 8, activations) + plain.bias
    mine = layer.with_update(x, down, up, 0.5) if adapted else layer(x)
    wanted = [x, plain.weight, plain.bias, *([down, up] if adapted else [])]
    upstream = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)
    pairs = zip(torch.autograd.grad(mine, wanted, upstream), torch.autograd.grad(right, wanted, upstream), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_nothing_rounded_is_kept_for_the_backward_pass() -> None:
    layer = RoundedLinear(Linear(32, 12), group=8, activations=True)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(4, 32, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):  # type: ignore[func-returns-value]
        layer(x)
    assert set(kept) == {x.data_ptr(), layer.weight.data_ptr()}


def test_what_is_swapped_and_put_back() -> None:
    with torch.device("meta"):
        model = dense_causal_lm(TINY)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    made = quantizer(skip=["o_proj"])
    names = made.swap(model)
    assert len(names) == 12 and not any(name.endswith("o_proj") for name in names)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes, (
        "a checkpoint is that of the plain model"
    )
    made.restore(model)
    assert {type(model.get_submodule(name)) for name in names} == {Linear}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes


def test_a_split_of_inputs_is_refused_by_name() -> None:
    for activations, message in (
        (True, "o_proj: its inputs are rounded over the whole token"),
        (False, "o_proj: 24 inputs"),
    ):
        layer = RoundedLinear(Linear(24, 12), group=8, activations=activations)
        layer.check_split("o_proj", "column", 2)
        with pytest.raises(ConfigError, match=message):
            layer.check_split("o_proj", "row", 2)
    layer.check_split("o_proj", "row", 3)


def test_groups_that_do_not_fill_a_row_are_named() -> None:
    with torch.device("meta"):
        model = dense_causal_lm(TINY)
    with pytest.raises(ConfigError, match=r"q_proj has 24 inputs, no multiple of quantizer\.group=16"):
        quantizer(group=16).swap(model)


def test_training_meets_what_conversion_gives() -> None:
    """Logits while training are those of the model loaded as int4."""
    trained = random_model(quantizer=quantizer(), phase="train")
    converted = random_model(quantizer=Int4Quantizer(Int4Options(group=8)), phase="decode")
    torch.testing.assert_close(logits(trained, IDS), logits(converted, IDS), rtol=1e-6, atol=1e-6)
    loss = logits(trained, IDS).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in trained.model.parameters())


def test_rounding_begins_after_its_step() -> None:
    late, plain = random_model(quantizer=quantizer(start_step=2)), random_model()
    rounded = random_model(quantizer=quantizer())
    layers = [module for module in late.model.modules() if isinstance(module, RoundedLinear)]
    assert len(layers) == 14
    for step, same in ((None, plain), (1, plain), (2, plain), (3, rounded), (4, rounded), (1, plain)):
        for layer in layers if step is not None else []:
            layer.at_step(step)  # type: ignore[arg-type]
        torch.testing.assert_close(logits(late, IDS), logits(same, IDS), rtol=1e-12, atol=1e-12)
    made = quantizer(start_step=1)
    heard = random_model(quantizer=made)
    for step, same in ((1, plain), (2, rounded)):
        made.begin_step(step)
        torch.testing.assert_close(logits(heard, IDS), logits(same, IDS), rtol=1e-12, atol=1e-12)
