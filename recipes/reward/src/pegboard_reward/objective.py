"""The objective: the chosen answer of a pair is to have the higher score."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pegboard.interfaces.objective import Objective, Role
from pegboard.types import Batch, LossOutput
from pegboard_reward.options import RewardOptions
from pegboard_trainer.pairs import count, pair_indices, pair_metrics


class BradleyTerry(Objective):
    """Sum over pairs of -log σ(s_chosen - s_rejected - margin) + center · (s_chosen + s_rejected)²; the denominator is their number.

    The score s of a sequence is that of its last token, by the scalar head of the role "reward".
    """

    def __init__(self, options: RewardOptions) -> None:
        self._options = options

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of pairs, a float64 scalar. Raises DataError for data without pairs."""
        return count(pair_indices(batch)[0])

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return the summed loss, with scores, their margin and the share of pairs in the right order."""
        scores = sequence_scores(roles["reward"], batch)
        chosen_ids, rejected_ids = pair_indices(batch)
        chosen, rejected = scores.index_select(0, chosen_ids), scores.index_select(0, rejected_ids)
        difference = chosen - rejected
        margins = batch.extras.get("margin")
        if self._options.margin and isinstance(margins, Tensor):
            # A row without a margin beside rows that have one holds NaN there.
            difference = difference - margins.to(scores.dtype).nan_to_num().index_select(0, chosen_ids)
        losses = -logsigmoid(difference)
        if self._options.center:
            losses = losses + self._options.center * (chosen + rejected) ** 2
        return LossOutput(losses.sum(), pair_metrics(chosen, rejected))


def sequence_scores(role: Role, batch: Batch) -> Tensor:
    """Return the score of each sequence's last token, [N] of at least float32."""
    last = (torch.tensor(batch.seq_lens, dtype=torch.int64).cumsum(0) - 1).to(batch.input_ids.device, non_blocking=True)
    scores: Tensor = role.head(role.hidden(batch).index_select(0, last)).squeeze(1)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
