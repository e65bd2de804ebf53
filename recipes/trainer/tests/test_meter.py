from __future__ import annotations

import torch
from torch import Tensor

from pegboard_trainer.meter import Meter, Single

CPU = torch.device("cpu")


def test_means_are_of_sums_and_counts() -> None:
    meter = Meter(CPU, Single())
    meter.add({"loss": (torch.tensor(6.0), 2), "right": (1, torch.tensor(4))})
    meter.add({"loss": (torch.tensor(1.0, requires_grad=True), 5)})
    assert meter.take() == {"loss": 1.0, "right": 0.25}
    assert meter.take() == {}


def test_a_count_of_zero_is_legal() -> None:
    meter = Meter(CPU, Single())
    meter.add({"loss": (0.0, 0)})
    assert meter.take() == {"loss": 0.0}


def test_sums_and_counts_are_added_over_the_ranks() -> None:
    class Pair:
        def sum(self, value: Tensor) -> Tensor:
            return value + torch.tensor([[4.0, 3.0]], dtype=torch.float64)

    meter = Meter(CPU, Pair())
    meter.add({"loss": (2.0, 1)})
    assert meter.take() == {"loss": 1.5}


def test_totals_are_sums_over_steps_and_ranks() -> None:
    class Twins:
        def sum(self, value: Tensor) -> Tensor:
            return 2 * value

    meter = Meter(CPU, Twins())
    for _ in range(2):
        meter.add({"loss": (6.0, 2)})
        meter.count({"tokens": 10, "flops": 0.5})
    assert meter.take() == {"loss": 3.0, "tokens": 40.0, "flops": 2.0}
    assert meter.take() == {}
