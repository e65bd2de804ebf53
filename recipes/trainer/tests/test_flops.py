from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pegboard.nn import Experts, Head, MoE
from pegboard_trainer.flops import StepCost, measured_flops
from pegboard_trainer.pace import Pace, peak_memory

LENGTHS = [7, 5]


def matrix_flops(model: Any, targets: int) -> int:
    """Count the matrix products of forward and backward with torch's counter; the tiny model's attention is no matrix product to it."""
    tokens = sum(LENGTHS)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    with FlopCounterMode(display=False) as counter:
        hidden = model.model(torch.arange(tokens) % 16, model.context(LENGTHS, positions))
        model.model.head(hidden[:targets]).sum().backward()
    names = ("mm", "addmm")
    return sum(count for op, count in counter.get_flop_counts()["Global"].items() if str(op).split(".")[-1] in names)


def test_matrix_products_are_those_that_torch_counts(tiny_model: Any) -> None:
    cost = StepCost.of(tiny_model.model)
    ours = cost.flops(LENGTHS, targets=4) - sum(12 * width * (28 + 15) for width, _ in cost.attention)
    assert ours == matrix_flops(tiny_model, targets=4)


def test_frozen_weights_take_no_gradient_of_their_own(tiny_model: Any) -> None:
    for parameter in tiny_model.model.parameters():
        parameter.requires_grad_(False)
    frozen = StepCost.of(tiny_model.model)
    assert (frozen.trained, frozen.head_trained) == (0, 0)
    assert frozen.flops([1], 0) == 4 * frozen.matrices + sum(12 * width for width, _ in frozen.attention)


def test_of_experts_those_count_that_a_token_uses() -> None:
    model = nn.Module()
    model.layer = MoE(6, Experts(8, 6, 4), 2, renormalise=True, shared=3)
    model.head = Head(6, 5)
    cost = StepCost.of(model)  # type: ignore[arg-type]
    assert cost.matrices == cost.trained == 2 * 3 * 6 * 4 + 3 * 6 * 3 + 6


@pytest.mark.parametrize(("window", "pairs"), [(None, 15), (2, 9), (9, 15)])
def test_attention_counts_the_pairs_that_it_sees(window: int | None, pairs: int) -> None:
    assert StepCost(0, 0, 0, 0, ((6, window),)).flops([5], 3) == 12 * 6 * pairs


def test_products_are_measured() -> None:
    assert measured_flops(torch.device("cpu"), torch.float32, budget=0.001) > 1e6


def test_rates_follow_from_totals_and_time() -> None:
    pace = Pace(torch.device("cpu"), peak_flops=1e3)
    told = pace.complete({"loss": 2.0, "tokens": 100.0, "trained_tokens": 50.0, "flops": 30.0})
    assert "flops" not in told and told["loss"] == 2.0
    assert told["tokens_per_second"] == pytest.approx(2 * told["trained_tokens_per_second"])
    assert told["mfu"] == pytest.approx(told["tokens_per_second"] * 30 / 100 / 1e3)
    assert 0 < told["memory_gb"] == peak_memory(torch.device("cpu")) / 1e9
    assert "mfu" not in Pace(torch.device("cpu")).complete({"tokens": 1.0, "trained_tokens": 1.0, "flops": 1.0})
