"""Objectives over pairs of a chosen and a rejected answer: DPO and its relatives, ORPO, SimPO."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from pegboard.interfaces.objective import Objective, Role
from pegboard.types import Batch, LossOutput
from pegboard_dpo.answers import answer_lengths, answer_logps, reference_logps
from pegboard_dpo.losses import PAIR_LOSSES, log_odds_ratio, simpo
from pegboard_dpo.options import DpoOptions, OrpoOptions, SimpoOptions
from pegboard_trainer.pairs import count, pair_indices, pair_metrics

Metrics = dict[str, tuple[Any, Any]]


class PairObjective(Objective):
    """A sum over pairs; the denominator is their number. Both answers of a pair go through the model in one pass."""

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of pairs, a float64 scalar. Raises DataError for data without pairs."""
        return count(pair_indices(batch)[0])

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss of the role "policy", with rewards, their margin and accuracy, and log-probabilities per token."""
        chosen, rejected = pair_indices(batch)
        reference = self.reference(roles, batch)  # first, while no activations of the policy are kept
        logps = answer_logps(roles["policy"], batch)
        means = logps / answer_lengths(batch, logps.dtype)
        losses, metrics = self.losses(batch, logps, means, reference)
        nll = -means.detach()
        metrics["nll/chosen"] = (nll.index_select(0, chosen).sum(), chosen.numel())
        metrics["nll/rejected"] = (nll.index_select(0, rejected).sum(), rejected.numel())
        return LossOutput(losses.sum(), metrics)

    def reference(self, roles: Mapping[str, Role], batch: Batch) -> Tensor | None:
        """Return log p of each sequence's answer under a reference, [N] without gradient; None for a loss that needs none."""
        return None

    @abstractmethod
    def losses(self, batch: Batch, logps: Tensor, means: Tensor, reference: Tensor | None) -> tuple[Tensor, Metrics]:
        """Return the loss of each pair, [P], and metrics.

        logps: the policy's log p of each sequence's answer, [N]. means: the same by token, [N]. reference: as `reference` gave it.
        """


class DirectPreference(PairObjective):
    """DPO and the losses that are made of the same two log-ratios. Needs the role "reference" or its log-probabilities in the data."""

    def __init__(self, options: DpoOptions) -> None:
        self._options = options
        self._loss = PAIR_LOSSES[options.loss]
        self._average = options.loss == "ipo" if options.average is None else options.average

    def reference(self, roles: Mapping[str, Role], batch: Batch) -> Tensor:
        """Return the reference's log-probabilities. Raises ConfigError when neither a model nor the data gives them."""
        return reference_logps(roles, batch)

    def losses(self, batch: Batch, logps: Tensor, means: Tensor, reference: Tensor | None) -> tuple[Tensor, Metrics]:
        """Return f(log-ratio of the chosen, of the rejected answer), plus `sft` times the chosen answer's -log p by token."""
        options = self._options
        chosen, rejected = pair_indices(batch)
        assert reference is not None
        ratios = logps - reference.to(logps.dtype)
        rewards = options.beta * ratios.detach()
        metrics = pair_metrics(rewards.index_select(0, chosen), rewards.index_select(0, rejected))
        if self._average:
            ratios = ratios / answer_lengths(batch, ratios.dtype)
        losses = self._loss(
            ratios.index_select(0, chosen), ratios.index_select(0, rejected), options.beta, options.label_smoothing
        )
        if options.sft:
            losses = losses - options.sft * means.index_select(0, chosen)
        return losses, metrics


class OddsRatio(PairObjective):
    """ORPO: the chosen answer's -log p by token, plus λ times -log σ of the log odds ratio. Needs no reference."""

    def __init__(self, options: OrpoOptions) -> None:
        self._options = options

    def losses(self, batch: Batch, logps: Tensor, means: Tensor, reference: Tensor | None) -> tuple[Tensor, Metrics]:
        """Return -log p(chosen) / length - λ log σ(log odds ratio); rewards are λ times log p by token, as published."""
        chosen, rejected = (means.index_select(0, indices) for indices in pair_indices(batch))
        odds = log_odds_ratio(chosen, rejected)
        metrics = pair_metrics(self._options.weight * chosen, self._options.weight * rejected)
        metrics["log_odds_ratio"] = (odds.detach().sum(), odds.numel())
        return -chosen - self._options.weight * logsigmoid(odds), metrics


class SimplePreference(PairObjective):
    """SimPO, and CPO: the margin of the policy's own log-probabilities. Needs no reference."""

    def __init__(self, options: SimpoOptions) -> None:
        self._options = options

    def losses(self, batch: Batch, logps: Tensor, means: Tensor, reference: Tensor | None) -> tuple[Tensor, Metrics]:
        """Return -log σ(β Δ - γ), plus `sft` times the chosen answer's -log p by token."""
        options = self._options
        scores = means if options.average else logps
        chosen, rejected = (scores.index_select(0, indices) for indices in pair_indices(batch))
        losses = simpo(chosen, rejected, options.beta, options.gamma, options.label_smoothing)
        if options.sft:
            losses = losses - options.sft * means.index_select(0, pair_indices(batch)[0])
        return losses, pair_metrics(options.beta * chosen, options.beta * rejected)
