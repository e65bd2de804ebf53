from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pegboard.types import Row
from pegboard_sft.objective import SupervisedObjective
from pegboard_trainer.collate import collate
from pegboard_trainer.roles import ModelRole

ROWS = [
    Row([5, 6, 7, 8], [False, False, True, True]),
    Row([9, 10], [True, True]),
    Row([11, 12, 13], [True, False, False]),
]


def test_loss_and_gradients_are_those_of_torchs_cross_entropy(tiny_model: Any) -> None:
    batch = collate(ROWS)
    objective, roles = SupervisedObjective(), {"policy": ModelRole(tiny_model, trained=True)}
    output = objective(roles, batch)
    (output.sum / objective.denominator(batch)).backward()
    ours = {name: p.grad.clone() for name, p in tiny_model.model.named_parameters() if p.grad is not None}
    tiny_model.model.zero_grad()
    hidden = tiny_model.model(batch.input_ids, tiny_model.context(batch.seq_lens, batch.positions))
    loss = F.cross_entropy(tiny_model.model.head(hidden), batch.targets, ignore_index=-100)
    loss.backward()
    assert output.sum.dtype == torch.float64
    assert output.sum.item() == pytest.approx(3 * loss.item(), rel=1e-12)
    assert len(ours) == len(list(tiny_model.model.parameters()))
    for name, parameter in tiny_model.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_denominator_is_the_number_of_tokens_to_be_learned() -> None:
    objective = SupervisedObjective()
    assert objective.denominator(collate(ROWS)).item() == 3
    nothing = objective.denominator(collate([ROWS[2]]))
    assert (nothing.item(), nothing.dtype) == (0, torch.float64)


def test_a_batch_without_targets_gives_zero_and_zero_gradients(tiny_model: Any) -> None:
    output = SupervisedObjective()({"policy": ModelRole(tiny_model, trained=True)}, collate([ROWS[2]]))
    output.sum.backward()
    assert output.sum.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in tiny_model.model.parameters())
