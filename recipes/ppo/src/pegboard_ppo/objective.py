"""The objective: the clipped losses of policy and value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.objective import Objective, Role
from pegboard.types import Batch, LossOutput
from pegboard_ppo.losses import clipped_policy, clipped_value
from pegboard_ppo.options import PpoOptions
from pegboard_rollouts.scoring import answer_loss, check_temperature


class Proximal(Objective):
    """A sum over tokens of answers; the denominator is their number.

    Of each token the batch has `old_logps`, `old_values`, `advantages` and `returns`; computed are the roles "policy" and "value".
    """

    def __init__(self, options: PpoOptions) -> None:
        self.options = options

    def prepare(self, roles: Mapping[str, Role], device: torch.device) -> None:
        """Raise ConfigError where a reference is needed and missing, and for a head that the temperature does not fit."""
        check_temperature(roles["policy"], self.options.temperature)
        if self.options.kl and "reference" not in roles:
            raise ConfigError(
                f"objective.kl is {self.options.kl:g}, but there is no reference",
                fix="write `reference={}` for a frozen copy, train an adapter, or set objective.kl=0",
            )

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of tokens that count, a float64 scalar known from a shape."""
        rows = batch.target_rows
        return torch.full((), float(rows.numel()), dtype=torch.float64, device=rows.device)

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss; by token the losses of policy and value and how often each clip decides."""
        options, tokens = self.options, batch.target_rows.numel()
        old, advantages = (_by_token(batch, name) for name in ("old_logps", "advantages"))

        def surrogate(logps: Tensor, at: slice) -> Tensor:
            return clipped_policy(logps, old[at], advantages[at], options.clip)[0]

        policy, logps = answer_loss(roles["policy"], batch, options.temperature, surrogate)
        clipped = clipped_policy(logps, old, advantages, options.clip)[1]
        values = answer_values(roles["value"], batch)
        before, returns = (_by_token(batch, name).to(values.dtype) for name in ("old_values", "returns"))
        value, held = clipped_value(values, before, returns, options.value_clip)
        return LossOutput(
            policy + options.value_weight * value.sum(),
            {
                "policy_loss": (policy.detach(), tokens),
                "value_loss": (value.detach().sum(), tokens),
                "clipped": (clipped.sum(), tokens),
                "value_clipped": (held.sum(), tokens),
                "logp": (logps.sum(), tokens),
            },
        )


def answer_values(role: Role, batch: Batch) -> Tensor:
    """Return what a scalar head expects before each of the tokens that count, [M] of at least float32."""
    values: Tensor = role.head(role.hidden(batch).index_select(0, batch.target_rows)).squeeze(1)
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _by_token(batch: Batch, name: str) -> Tensor:
    values: Tensor = batch.extras[name]
    return values.index_select(0, batch.target_rows)
