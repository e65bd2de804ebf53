from __future__ import annotations

import math

import pytest
import torch

from pegboard.errors import ConfigError
from pegboard_grpo.losses import clipped_surrogate, group_advantages, group_deviations, k3
from pegboard_grpo.objective import GroupRelative
from pegboard_grpo.options import GrpoOptions
from pegboard_sdk.toys.roles import ToyRole, pack


def test_group_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    assert group_advantages(rewards).tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4]
    torch.testing.assert_close(group_deviations(rewards).flatten().tolist(), [math.sqrt(1 / 3), 0.0])
    assert group_deviations(rewards[:, :1]).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 1.0, -1.25, True),
        (1.5, -1.0, 1.5, False),
        (0.5, 1.0, -0.5, False),
        (0.5, -1.0, 0.8, True),
        (9.0, -1.0, 4.0, False),
    ],
)
def test_clipped_surrogate(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    log, gain = torch.tensor([math.log(ratio)]), torch.tensor([advantage])
    found, decided = clipped_surrogate(log, gain, 0.2, 0.25, 4.0)
    assert found.item() == pytest.approx(loss)
    assert decided.item() is clipped


def test_k3_is_an_unbiased_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    estimates = k3(p, q)
    assert (estimates >= 0).all()
    torch.testing.assert_close((p.exp() * estimates).sum(), (p.exp() * (p - q)).sum())
    assert k3(torch.tensor([-1000.0]), torch.tensor([0.0])).isfinite().all()


def test_bnpo_weighs_forward_passes_the_same() -> None:
    batch = pack([([1, 2, 3, 4], [False, False, True, True]), ([1, 5], [False, True])])
    batch.parts = {"answer": torch.arange(2)}
    batch.extras = {"old_logps": torch.zeros(6), "advantage": torch.tensor([1.0, -2.0])}
    roles = {"policy": ToyRole()}
    sums = {loss: GroupRelative(GrpoOptions(loss=loss))(roles, batch).sum for loss in ("bnpo", "dapo")}  # type: ignore[arg-type]
    torch.testing.assert_close(sums["bnpo"], sums["dapo"] / 3)
    objective = GroupRelative(GrpoOptions(loss="bnpo"))
    assert objective.denominator(batch) == 1
    batch.target_rows = batch.target_rows[:0]
    assert objective.denominator(batch) == 0
    assert objective(roles, batch).sum == 0


def test_a_divergence_needs_a_reference() -> None:
    with pytest.raises(ConfigError, match="no reference"):
        GroupRelative(GrpoOptions(beta=0.1)).prepare({"policy": ToyRole()}, torch.device("cpu"))


def test_a_capped_head_has_no_temperature() -> None:
    role = ToyRole()
    role.head.softcap = 30.0
    with pytest.raises(ConfigError, match="caps its logits"):
        GroupRelative(GrpoOptions(temperature=0.5)).prepare({"policy": role}, torch.device("cpu"))
