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

    The baseline z is the mean log-ratio of the step's mismatched sequences, at least 0, without gradient; a step without such
    sequences has z = 0. Needs the role "reference"; without mismatched sequences its log-probabilities in the data will do.
    """

    def __init__(self, options: KtoOptions) -> None:
        self._options = options

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of answers, a float64 scalar. Raises DataError for data whose answers are not told good from bad."""
        answers = sum(indices.numel() for _, indices in _labelled(batch))
        return torch.full((), float(answers), dtype=torch.float64, device=batch.input_ids.device)

    @torch.no_grad()
    def totals(self, roles: Mapping[str, Role], batch: Batch) -> Tensor | None:
        """Return sum and number of the mismatched sequences' log-ratios, [2]; None for a loss without a baseline."""
        if self._options.loss != "kto":
            return None
        added = _added(batch)
        if not added and "reference" not in roles:  # the data have the reference's log-probabilities
            return torch.zeros(2, device=batch.input_ids.device)
        # A batch without any takes the same passes, over a sequence that counts for nothing: other ranks take theirs.
        first, last = (len(batch.seq_lens) - added, len(batch.seq_lens)) if added else (0, min(1, len(batch.seq_lens)))
        mismatched = batch.sequences(first, last)
        # Which answers meet is not known before the run, so that no data can hold what the reference gives them.
        reference = reference_logps(roles, mismatched, in_data=False)
        ratios = answer_logps(roles["policy"], mismatched) - reference
        return torch.stack([ratios.sum(), ratios.new_full((), len(ratios))]) * float(added > 0)

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed, weighted loss of the role "policy", with the rewards of good and bad answers and the baseline."""
        options, labelled, added = self._options, _labelled(batch), _added(batch)
        totals = batch.extras["totals"] if "totals" in batch.extras else self.totals(roles, batch)
        answers = batch.sequences(0, len(batch.seq_lens) - added)
        if not added:
            answers.extras = batch.extras
        reference = reference_logps(roles, answers)
        logps = answer_logps(roles["policy"], answers)
        ratios = logps - reference.to(logps.dtype)
        baseline = torch.zeros((), dtype=ratios.dtype, device=ratios.device)
        metrics: dict[str, tuple[Any, Any]] = {}
        if totals is not None:
            baseline = (totals[0] / totals[1].clamp(min=1)).clamp(min=0).to(ratios.dtype)
        if added:
            metrics["kl"] = (baseline * added, added)
        total = ratios.sum() * 0
        for desirable, indices in labelled:
            values = ratios.index_select(0, indices)
            weight = options.desirable_weight if desirable else options.undesirable_weight
            total = total + weight * kto(values, baseline, options.beta, desirable=desirable).sum()
            name = "rewards/desirable" if desirable else "rewards/undesirable"
            metrics[name] = (options.beta * values.detach().sum(), indices.numel())
        return LossOutput(total, metrics)


def _added(batch: Batch) -> int:
    """Return how many mismatched sequences there are, at the end of the batch."""
    return batch.parts[MISMATCHED].numel() if MISMATCHED in batch.parts else 0


def _labelled(batch: Batch) -> list[tuple[bool, Tensor]]:
    """Return (whether they are desirable, their sequences) of the answers of a batch."""
    found = [(name == "desirable", batch.parts[name]) for name in ("desirable", "undesirable") if name in batch.parts]
    if not found:
        raise DataError("the data does not tell good answers from bad ones", fix="set data.format=labels")
    return found
