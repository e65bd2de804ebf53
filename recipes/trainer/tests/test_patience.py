from __future__ import annotations

import math

from pegboard_trainer.patience import Patience


def test_a_run_is_over_after_so_many_measurements_without_a_better_one() -> None:
    patience = Patience(limit=2)
    losses = [3.0, 2.0, 2.5, math.nan]
    assert [patience.is_over(step, {"validation/loss": loss}) for step, loss in enumerate(losses)] == [
        False,
        False,
        False,
        True,
    ]
    assert (patience.best, patience.best_step) == (2.0, 1)
    assert "best after step 1 (2)" in patience.describe()


def test_more_may_be_better_and_a_little_is_not_enough() -> None:
    patience = Patience(metric="validation/reward", greater=True, limit=1, margin=0.1)
    assert not patience.is_over(1, {"validation/reward": 0.5})
    assert not patience.is_over(2, {"validation/reward": 0.7})
    assert not patience.is_over(3, {"validation/loss": 9.0})
    assert patience.is_over(4, {"validation/reward": 0.75})


def test_what_is_remembered_comes_back() -> None:
    patience, other = Patience(limit=3), Patience(limit=3)
    for step, loss in enumerate([3.0, 2.0, 2.5]):
        patience.is_over(step, {"validation/loss": loss})
    other.restore(patience.state())
    assert other == patience
