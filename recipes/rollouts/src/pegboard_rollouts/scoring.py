"""Log-probabilities and values of answers, without gradient, as the objectives compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.objective import Role
from pegboard.nn.loss import TokenLoss, token_logps, token_loss_sum
from pegboard.types import Batch, Row
from pegboard_rollouts.samples import Sample
from pegboard_trainer.collate import collate
from pegboard_trainer.roles import ModelRole


def answer_logps(role: Role, batch: Batch, temperature: float) -> Tensor:
    """Return log p(target) of each of `batch.target_rows` at a temperature, [M] of at least float32.

    `check_temperature` says which heads have one.
    """
    return token_logps(_cooled(role, batch, temperature), role.head, batch.targets, batch.target_rows)


def answer_loss(role: Role, batch: Batch, temperature: float, loss: TokenLoss) -> tuple[Tensor, Tensor]:
    """Return the sum of a loss that each token has by itself, and log p of `answer_logps` without gradient, in one pass.

    loss: see `pegboard.nn.loss.token_loss_sum`.
    """
    return token_loss_sum(_cooled(role, batch, temperature), role.head, batch.targets, batch.target_rows, loss)


def _cooled(role: Role, batch: Batch, temperature: float) -> Tensor:
    """Return the states divided by a temperature: that divides the logits, of which none are held for a whole batch."""
    hidden = role.hidden(batch)
    return hidden if temperature == 1 else hidden / temperature


def check_temperature(role: Role, temperature: float) -> None:
    """Raise ConfigError for a head whose logits are not proportional to its states."""
    if role.head.softcap is not None and temperature != 1:
        raise ConfigError(
            f"rollout.temperature is {temperature:g}, but this model caps its logits", fix="set rollout.temperature=1"
        )


def by_sample(
    samples: Sequence[Sample],
    role: ModelRole,
    compute: Callable[[Role, Batch], Tensor],
    size: int,
    device: torch.device,
) -> list[Tensor]:
    """Return what `compute` gives for the tokens of each answer, [length] float32 on the host each.

    compute: of a role and a batch, one number for each of `batch.target_rows`. size: samples of a forward pass. The model is in
    evaluation mode meanwhile.
    """
    model = role.built.model
    training = model.training
    model.eval()
    try:
        found: list[Tensor] = []
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            # Whatever is learned from later, all of an answer is scored.
            rows = [Row(s.ids, [False] * s.prompt + [True] * s.length) for s in part]
            with torch.no_grad():
                values = compute(role, collate(rows).to(device)).float().cpu()
            found += values.split([sample.length for sample in part])
        return [values.clone() for values in found]
    finally:
        model.train(training)
