from __future__ import annotations

import math

import pytest

from pegboard_trainer.options import ConstantOptions, DecayOptions, WsdOptions
from pegboard_trainer.schedules import Constant, Cosine, Linear, WarmupStableDecay, steps_of

STEPS = range(100)


def test_a_value_below_one_is_a_share() -> None:
    assert [steps_of(value, 200) for value in (0.0, 0.05, 0.999, 1.0, 30.0)] == [0, 10, 200, 1, 30]


def test_constant() -> None:
    schedule = Constant(ConstantOptions(warmup=4))
    assert [schedule.factor(step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear() -> None:
    schedule = Linear(DecayOptions(warmup=0.2, minimum=0.1))
    for step in range(20, 100):
        assert schedule.factor(step, 100) == pytest.approx(1 - 0.9 * (step - 20) / 80)
    assert schedule.factor(100, 100) == pytest.approx(0.1)


def test_cosine() -> None:
    schedule = Cosine(DecayOptions(warmup=10, minimum=0.2))
    for step in range(10, 100):
        assert schedule.factor(step, 100) == pytest.approx(0.6 + 0.4 * math.cos(math.pi * (step - 10) / 90))
    assert schedule.factor(100, 100) == pytest.approx(0.2)


def test_warmup_stable_decay() -> None:
    schedule = WarmupStableDecay(WsdOptions(warmup=5, decay=0.2, minimum=0.0))
    assert [schedule.factor(step, 100) for step in (0, 4, 5, 79, 80)] == [0.2, 1.0, 1.0, 1.0, 1.0]
    for step in range(80, 100):
        assert schedule.factor(step, 100) == pytest.approx((100 - step) / 20)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(ConstantOptions(warmup=500)),
        Linear(DecayOptions(warmup=99)),
        Cosine(DecayOptions(warmup=0.5)),
        WarmupStableDecay(WsdOptions(warmup=50, decay=80)),
        WarmupStableDecay(WsdOptions(decay=0)),
    ],
)
def test_every_factor_is_a_share_of_the_peak(schedule: Constant) -> None:
    """Also where the phases overlap, are longer than the run, or empty, and past the end."""
    for total in (1, 2, 100):
        assert all(0 <= schedule.factor(step, total) <= 1 for step in range(total + 3))
        assert schedule.factor(0, total) > 0
