from __future__ import annotations

from typing import Any

import pytest
import torch

from pegboard.errors import DataError
from pegboard.types import Row
from pegboard_reward.objective import BradleyTerry, sequence_scores
from pegboard_reward.options import RewardOptions
from pegboard_sdk.toys.roles import ToyRole
from pegboard_trainer.collate import collate


def pair(chosen: list[int], rejected: list[int], **extras: Any) -> tuple[Row, Row]:
    return (
        Row(chosen, [True] * len(chosen), extras, "chosen"),
        Row(rejected, [True] * len(rejected), extras, "rejected"),
    )


class Sums(ToyRole):
    """The score of a token is its id."""

    def __init__(self) -> None:
        super().__init__()
        self._head = lambda hidden: hidden  # type: ignore[assignment]

    def hidden(self, batch: Any) -> torch.Tensor:
        return batch.input_ids[:, None].double().requires_grad_()


def test_the_score_of_a_sequence_is_that_of_its_last_token() -> None:
    batch = collate([pair([1, 2, 3], [4, 5]), pair([6], [7, 8])])
    assert sequence_scores(Sums(), batch).tolist() == [3, 5, 6, 8]


def test_margins_may_be_left_out_and_ignored() -> None:
    batch = collate([pair([3], [1], margin=2), pair([3], [1], margin=0)])
    plain = collate([pair([3], [1])] * 2)
    with_margin, ignored = BradleyTerry(RewardOptions()), BradleyTerry(RewardOptions(margin=False))
    losses = [
        objective({"reward": Sums()}, b).sum.item()
        for objective, b in ((with_margin, batch), (ignored, batch), (with_margin, plain))
    ]
    log = torch.nn.functional.logsigmoid(torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert losses == pytest.approx([-log.sum().item(), -2 * log[1].item(), -2 * log[1].item()])


def test_metrics_are_of_pairs() -> None:
    out = BradleyTerry(RewardOptions())({"reward": Sums()}, collate([pair([3], [1]), pair([2], [9]), pair([4], [4])]))
    means = {name: float(total) / count for name, (total, count) in out.metrics.items()}
    assert means == pytest.approx(
        {"rewards/chosen": 3, "rewards/rejected": 14 / 3, "rewards/margin": -5 / 3, "rewards/accuracy": 1 / 3}
    )


def test_single_answers_are_refused() -> None:
    with pytest.raises(DataError, match="no pairs"):
        BradleyTerry(RewardOptions()).denominator(collate([Row([1, 2], [True, True])]))
