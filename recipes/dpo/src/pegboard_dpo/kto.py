"""The objective over single answers that are good or bad: KTO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pegboard.errors import DataError
from pegboard.interfaces.objective import Objective, Role
from pegboard.types import Batch, LossOutput
from pegboard_dpo.answers import answer_logps, reference_logps
from pegboard_dpo.losses import kto
from pegboard_dpo.options import KtoOptions

MISMATCHED = "mismatched"
"""The part of sequences that pair a prompt with the answer to another one. They come last in a batch."""


class KahnemanTversky(Objective):
    """KTO: a sum over answers; the denominator is their number.

    The baseline z is the mean log-ratio of the batch's mismatched sequences, at least 0, without gradient; a batch without such
    sequences has z = 0. Needs the role "reference"; without mismatched sequences its log-probabilities in the data will do.
    """

    def __init__(self, options: KtoOptions) -> None:
        self._options = options

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of answers, a float64 scalar. Raises DataError for data whose answers are not told good from bad."""
        answers = sum(indices.numel() for _, indices in _labelled(batch))
        return torch.full((), float(answers), dtype=torch.float64, device=batch.input_ids.device)

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed, weighted loss of the role "policy", with the rewards of good and bad answers and the baseline."""
        options = self._options
        labelled = _labelled(batch)
        mismatched = batch.parts.get(MISMATCHED)
        # Which answers meet in a batch is not known before the run, so that no data can hold what the reference gives them.
        reference = reference_logps(roles, batch, in_data=mismatched is None)
        policy = roles["policy"]
        logps = answer_logps(policy, batch, _hidden(policy, batch))
        ratios = logps - reference.to(logps.dtype)
        baseline = torch.zeros((), dtype=ratios.dtype, device=ratios.device)
        metrics: dict[str, tuple[Any, Any]] = {}
        if options.loss == "kto" and mismatched is not None and mismatched.numel():
            baseline = ratios.detach().index_select(0, mismatched).mean().clamp(min=0)
            metrics["kl"] = (baseline * mismatched.numel(), mismatched.numel())
        total = ratios.sum() * 0
        for desirable, indices in labelled:
            values = ratios.index_select(0, indices)
            weight = options.desirable_weight if desirable else options.undesirable_weight
            total = total + weight * kto(values, baseline, options.beta, desirable=desirable).sum()
            name = "rewards/desirable" if desirable else "rewards/undesirable"
            metrics[name] = (options.beta * values.detach().sum(), indices.numel())
        return LossOutput(total, metrics)


def _labelled(batch: Batch) -> list[tuple[bool, Tensor]]:
    """Return (whether they are desirable, their sequences) of the answers of a batch."""
    found = [(name == "desirable", batch.parts[name]) for name in ("desirable", "undesirable") if name in batch.parts]
    if not found:
        raise DataError("the data does not tell good answers from bad ones", fix="set data.format=labels")
    return found


def _hidden(policy: Role, batch: Batch) -> Tensor:
    """Return the policy's states, [T, H]; those of the mismatched sequences at the end without gradient, so that none of
    their activations is kept.
    """
    added = batch.parts[MISMATCHED].numel() if MISMATCHED in batch.parts else 0
    if not added:
        return policy.hidden(batch)
    first = len(batch.seq_lens) - added
    hidden = policy.hidden(_sequences(batch, 0, first))
    with torch.no_grad():
        others = policy.hidden(_sequences(batch, first, len(batch.seq_lens)))
    return torch.cat([hidden, others])


def _sequences(batch: Batch, first: int, last: int) -> Batch:
    """Return the inputs of sequences first … last - 1, without targets."""
    start, stop = sum(batch.seq_lens[:first]), sum(batch.seq_lens[:last])
    rows = slice(start, stop)
    return Batch(
        batch.input_ids[rows],
        batch.positions[rows],
        batch.targets[rows],
        batch.seq_lens[first:last],
        batch.target_rows[:0],
    )
