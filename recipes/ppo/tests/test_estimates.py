from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegboard_ppo.estimates import generalised_advantages, steered, whiten
from pegboard_ppo.losses import clipped_policy, clipped_value


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.8, 0.0)])
def test_advantages_are_discounted_sums_of_errors(gamma: float, lam: float) -> None:
    rewards, values = draw(3, 6), draw(3, 6, seed=1)
    lengths = (6, 1, 4)
    for row, length in enumerate(lengths):
        rewards[row, length:] = values[row, length:] = 0
    found = generalised_advantages(rewards, values, gamma, lam)
    for row, length in enumerate(lengths):
        following = [*values[row, 1:length], 0.0]
        errors = [rewards[row, t] + gamma * following[t] - values[row, t] for t in range(length)]
        for t in range(length):
            wanted = sum((gamma * lam) ** (u - t) * errors[u] for u in range(t, length))
            torch.testing.assert_close(found[row, t], torch.as_tensor(wanted))
        assert not found[row, length:].any()


def test_with_lambda_one_advantages_and_values_add_up_to_returns() -> None:
    rewards, values = draw(2, 5), draw(2, 5, seed=1)
    returns = generalised_advantages(rewards, values, 1.0, 1.0) + values
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))


def test_whitening() -> None:
    values = 3 + 2 * draw(50)
    centred, own = whiten(values), whiten(values, centre=False)
    torch.testing.assert_close(centred.mean(), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(centred.var(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(own.mean(), values.mean())
    torch.testing.assert_close(own - values.mean(), centred)


def test_whitening_over_ranks_is_that_of_all_values() -> None:
    values = draw(20)
    parts = [values[:7], values[7:]]
    sums: list[Tensor] = []

    def alone(value: Tensor) -> Tensor:
        sums.append(value)
        return value

    # What both ranks add up to, told to each of them.
    count_sum = torch.stack([torch.tensor(20.0, dtype=torch.float64), values.sum()])
    squares = ((values - values.mean()) ** 2).sum()
    for part, wanted in zip(parts, (whiten(values)[:7], whiten(values)[7:]), strict=True):
        totals = iter([count_sum, squares])
        torch.testing.assert_close(whiten(part, lambda _, totals=totals: next(totals)), wanted)  # type: ignore[misc]
    whiten(values, alone)
    torch.testing.assert_close(sums[0], count_sum)
    torch.testing.assert_close(sums[1], squares)


def test_the_weight_is_steered() -> None:
    assert steered(0.1, 6.0, 6.0, 100, 1000) == pytest.approx(0.1)
    assert steered(0.1, 6.6, 6.0, 100, 1000) == pytest.approx(0.1 * 1.01)
    assert steered(0.1, 600.0, 6.0, 100, 1000) == pytest.approx(0.1 * 1.02)
    assert steered(0.1, -3.0, 6.0, 100, 1000) == pytest.approx(0.1 * 0.98)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "clipped"),
    [
        (0.0, 2.0, -2.0, False),
        (1.0, 1.0, -1.2, True),
        (-1.0, -1.0, 0.8, True),
        (-1.0, 1.0, -0.36787944117144233, False),
    ],
)
def test_policy_loss(log_ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    logps = torch.tensor([log_ratio - 2], dtype=torch.float64)
    found, decided = clipped_policy(logps, torch.full_like(logps, -2.0), torch.full_like(logps, advantage), 0.2)
    assert found.item() == pytest.approx(loss)
    assert decided.item() is clipped


def test_value_loss() -> None:
    values = torch.tensor([0.1, 0.9, 0.9], dtype=torch.float64)
    old, returns = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    found, held = clipped_value(values, old, returns, 0.2)
    torch.testing.assert_close(found, torch.tensor([0.81, 0.64, 3.61], dtype=torch.float64) / 2)
    assert held.tolist() == [False, True, False]
    torch.testing.assert_close(clipped_value(values, old, returns, None)[0], (values - returns) ** 2 / 2)
