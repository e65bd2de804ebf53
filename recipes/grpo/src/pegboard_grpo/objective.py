"""The objective: answers that are better than others to their prompt become more likely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.objective import Objective, Role
from pegboard.nn.loss import sequence_sums
from pegboard.types import Batch, LossOutput
from pegboard_grpo.losses import clipped_surrogate, k3
from pegboard_grpo.options import GrpoOptions
from pegboard_rollouts.samples import ANSWER
from pegboard_rollouts.scoring import answer_logps, answer_loss, check_temperature


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
        options, terms, tokens = self.options, self._terms(batch), batch.target_rows.numel()
        if options.ratio == "token":
            total, logps = answer_loss(roles["policy"], batch, options.temperature, terms.by_token)
            log_ratios = logps - terms.old
        else:  # every token's loss depends on all tokens of its answer
            logps = answer_logps(roles["policy"], batch, options.temperature)
            log_ratios = _answer_means(logps - terms.old, batch)
            total = terms.losses(logps, log_ratios, slice(None)).sum()
            logps, log_ratios = logps.detach(), log_ratios.detach()
        metrics: dict[str, tuple[object, object]] = {
            "clipped": (terms.surrogate(log_ratios, slice(None))[1].sum(), tokens),
            "logp": (logps.sum(), tokens),
        }
        if terms.reference is not None:
            metrics["kl"] = (k3(logps, terms.reference).sum(), tokens)
        return LossOutput(total, metrics)

    def _terms(self, batch: Batch) -> _Terms:
        """Return what the loss of each token needs beside its log-probability."""
        owners = batch.sequence_ids.index_select(0, batch.target_rows)
        reference = _by_token(batch, "reference_logps") if self.options.beta else None
        shares: Tensor | float = 1.0
        if self.options.loss == "grpo":
            shares = _lengths(batch, owners).index_select(0, owners)
        elif self.options.loss == "dr_grpo":
            shares = self.options.max_tokens
        elif self.options.loss == "bnpo":
            shares = max(owners.numel(), 1)
        advantages = batch.extras["advantage"].index_select(0, owners)
        return _Terms(self.options, _by_token(batch, "old_logps"), advantages, reference, shares)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the losses of M tokens need: tensors [M], or for `shares`, what a token's loss is divided by, one number for all."""

    options: GrpoOptions
    old: Tensor
    advantages: Tensor
    reference: Tensor | None
    shares: Tensor | float

    def by_token(self, logps: Tensor, at: slice) -> Tensor:
        """Return the losses of the tokens `at`, each with a ratio of its own, [m]."""
        return self.losses(logps, logps - self.old[at], at)

    def losses(self, logps: Tensor, log_ratios: Tensor, at: slice) -> Tensor:
        """Return the weighted losses of the tokens `at`, [m]."""
        found, _ = self.surrogate(log_ratios, at)
        if self.reference is not None:
            found = found + self.options.beta * k3(logps, self.reference[at])
        return found / (self.shares[at] if isinstance(self.shares, Tensor) else self.shares)

    def surrogate(self, log_ratios: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """Return the clipped surrogate of the tokens `at`, and whether the clip decides, both [m]."""
        options = self.options
        above = options.clip if options.clip_above is None else options.clip_above
        return clipped_surrogate(log_ratios, self.advantages[at], options.clip, above, options.most)


def _by_token(batch: Batch, name: str) -> Tensor:
    values: Tensor = batch.extras[name]
    return values.index_select(0, batch.target_rows)


def _lengths(batch: Batch, owners: Tensor) -> Tensor:
    """Return how many tokens of each sequence are learned, [N] int64, 1 for none: it is divided by."""
    # Not bincount, which waits for the device.
    return owners.new_zeros(len(batch.seq_lens)).index_add(0, owners, torch.ones_like(owners)).clamp(min=1)


def _answer_means(values: Tensor, batch: Batch) -> Tensor:
    """Return for each token the mean over its answer of values [M], [M]."""
    rows, owners = batch.target_rows, batch.sequence_ids.index_select(0, batch.target_rows)
    sums = sequence_sums(values, rows, batch.sequence_ids, len(batch.seq_lens))
    return (sums / _lengths(batch, owners)).index_select(0, owners)
