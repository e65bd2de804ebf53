"""Losses and gradients of GRPO and its relatives are those of TRL, over the same log-probabilities in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from pegboard.types import Batch
from pegboard_grpo.losses import EPSILON, group_advantages, group_deviations
from pegboard_grpo.objective import GroupRelative
from pegboard_grpo.options import GrpoOptions
from pegboard_sdk.toys.roles import VOCABULARY, ToyRole, pack

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

PROMPTS, ANSWERS = (3, 2, 5, 1), (4, 7, 1, 6)
LONGEST = 9


def batch_of(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.randint(VOCABULARY, (prompt + answer,), generator=generator).tolist()
        sequences.append((ids, [False] * prompt + [True] * answer))
    batch = pack(sequences)
    batch.parts = {"answer": torch.arange(len(ANSWERS))}
    batch.extras["advantage"] = torch.randn(len(ANSWERS), generator=generator, dtype=torch.float64)
    return batch


def padded(values: Tensor) -> Tensor:
    """[M] of all answers -> [N, longest]."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(ANSWERS)), batch_first=True)


def trl_loss(logps: Tensor, batch: Batch, options: dict[str, Any]) -> Tensor:
    """TRL's own function, given log-probabilities in the place of a model."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    mask = padded(torch.ones(sum(ANSWERS))).double()
    rows = batch.target_rows
    args = MagicMock(delta=options.get("most"), use_bias_correction_kl=False, steps_per_generation=1)
    trainer = MagicMock(
        args=args,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=options.get("ratio", "token"),
        beta=options.get("beta", 0.0),
        loss_type=options["loss"],
        epsilon_low=0.2,
        epsilon_high=options.get("clip_above", 0.2),
        use_vllm=False,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    trainer.accelerator.num_processes = 1
    trainer.accelerator.gather = lambda x: x
    table = padded(logps)
    trainer._get_per_token_logps_and_entropies.return_value = (table, torch.zeros_like(table), None)
    inputs = {
        "prompt_ids": torch.zeros(len(ANSWERS), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(ANSWERS), 1, dtype=torch.int64),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": batch.extras["advantage"],
        "old_per_token_logps": padded(batch.extras["old_logps"][rows]),
        "ref_per_token_logps": padded(batch.extras["reference_logps"][rows]),
        "num_items_in_batch": torch.tensor(float(sum(ANSWERS))),
    }
    loss: Tensor = GRPOTrainer._compute_loss(trainer, SimpleNamespace(training=True), inputs)
    return loss


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "grpo", "beta": 0.1},
        {"loss": "bnpo"},
        {"loss": "dr_grpo", "beta": 0.02},
        {"loss": "dapo", "clip_above": 0.28, "most": 1.4},
        {"loss": "grpo", "ratio": "sequence"},
        {"loss": "dapo", "ratio": "sequence", "beta": 0.5},
    ],
)
def test_losses(options: dict[str, Any], seed: int) -> None:
    batch, role = batch_of(seed), ToyRole(seed=seed)
    table = (role.hidden(batch) @ role.head.matrix.t()).log_softmax(-1)
    rows = batch.target_rows
    logps = table[rows].gather(1, batch.targets[rows, None]).squeeze(1)
    generator = torch.Generator().manual_seed(seed + 100)
    for name in ("old_logps", "reference_logps"):
        values = torch.zeros(len(batch.targets), dtype=torch.float64)
        noise = torch.randn(len(rows), generator=generator, dtype=torch.float64)
        batch.extras[name] = values.index_put((rows,), logps.detach() + 0.4 * noise)
    objective = GroupRelative(GrpoOptions(max_tokens=LONGEST, **options))
    mine = objective({"policy": role}, batch).sum / objective.denominator(batch)
    right = trl_loss(logps, batch, options)
    torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)
    parameters = role.parameters()
    for found, wanted in zip(
        torch.autograd.grad(mine, parameters), torch.autograd.grad(right, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_advantages() -> None:
    """As TRL computes them: rewards of a group less their mean, over the deviation plus a small number."""
    rewards = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = rewards.flatten()
    means = flat.view(-1, 4).mean(dim=1).repeat_interleave(4)
    deviations = flat.view(-1, 4).std(dim=1).repeat_interleave(4)
    wanted = (flat - means) / (deviations + 1e-4)
    mine = group_advantages(rewards) / (group_deviations(rewards) + EPSILON)
    torch.testing.assert_close(mine.flatten(), wanted)
