"""The objective: answers that are better than others to their prompt become more likely."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.objective import Objective, Role
from pegboard.nn.loss import sequence_sums
from pegboard.types import Batch, LossOutput
from pegboard_grpo.losses import clipped_surrogate, k3
from pegboard_grpo.options import GrpoOptions
from pegboard_rollouts.samples import ANSWER
from pegboard_rollouts.scoring import answer_logps, check_temperature


class GroupRelative(Objective):
    """A sum over tokens of answers, weighted as `loss` says; the denominator is what its weights leave out.

    Of each answer the batch has the extra `advantage`; of each token `old_logps`, with `beta` above 0 `reference_logps` too. So the
    only model that is computed is the role "policy".
    """

    def __init__(self, options: GrpoOptions) -> None:
        self.options = options

    def prepare(self, roles: Mapping[str, Role], device: torch.device) -> None:
        """Raise ConfigError where a reference is needed and missing, and for a head that the temperature does not fit."""
        check_temperature(roles["policy"], self.options.temperature)
        if self.options.beta and "reference" not in roles:
            raise ConfigError(
                f"objective.beta is {self.options.beta:g}, but there is no reference",
                fix="write `reference={}` for a frozen copy, train an adapter, or set objective.beta=0",
            )

    def denominator(self, batch: Batch) -> Tensor:
        """Return answers (grpo, dr_grpo), tokens (dapo) or forward passes (bnpo), a float64 scalar known from shapes."""
        tokens = batch.target_rows.numel()
        answers = batch.parts[ANSWER].numel() if ANSWER in batch.parts else 0
        count = {"grpo": answers, "dr_grpo": answers, "dapo": tokens, "bnpo": int(tokens > 0)}[self.options.loss]
        return torch.full((), float(count), dtype=torch.float64, device=batch.input_ids.device)

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss; by token how often the clip decides, log p, and the estimated divergence from the reference."""
        options, rows = self.options, batch.target_rows
        logps = answer_logps(roles["policy"], batch, options.temperature)
        owners = batch.sequence_ids.index_select(0, rows)
        lengths = sequence_sums(torch.ones_like(logps), rows, batch.sequence_ids, len(batch.seq_lens)).clamp(min=1)
        log_ratios = logps - _by_token(batch, "old_logps").to(logps.dtype)
        if options.ratio == "sequence":
            means = sequence_sums(log_ratios, rows, batch.sequence_ids, len(batch.seq_lens)) / lengths
            log_ratios = means.index_select(0, owners)
        advantages = batch.extras["advantage"].to(logps.dtype).index_select(0, owners)
        above = options.clip if options.clip_above is None else options.clip_above
        losses, clipped = clipped_surrogate(log_ratios, advantages, options.clip, above, options.most)
        tokens = rows.numel()
        metrics: dict[str, tuple[object, object]] = {
            "clipped": (clipped.sum(), tokens),
            "logp": (logps.detach().sum(), tokens),
        }
        if options.beta:
            divergence = k3(logps, _by_token(batch, "reference_logps").to(logps.dtype))
            losses = losses + options.beta * divergence
            metrics["kl"] = (divergence.detach().sum(), tokens)
        return LossOutput(self._sum(losses, lengths.index_select(0, owners)), metrics)

    def _sum(self, losses: Tensor, lengths: Tensor) -> Tensor:
        """Return the weighted sum of the losses [M] of tokens whose answers have `lengths` [M] tokens."""
        if self.options.loss == "grpo":
            return (losses / lengths).sum()
        if self.options.loss == "dr_grpo":
            return losses.sum() / self.options.max_tokens
        if self.options.loss == "bnpo":
            return losses.sum() / max(losses.numel(), 1)
        return losses.sum()


def _by_token(batch: Batch, name: str) -> Tensor:
    values: Tensor = batch.extras[name]
    return values.index_select(0, batch.target_rows)
