"""Log-probabilities of the answers in a batch, of the policy and of the reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.objective import Role
from pegboard.nn.loss import sequence_sums, token_logps
from pegboard.types import Batch

REFERENCE_COLUMN = "reference_logps"
"""In a batch's extras: what the reference gives each sequence, where it was computed before the run."""


def answer_logps(role: Role, batch: Batch, hidden: Tensor | None = None) -> Tensor:
    """Return log p of each sequence's targets, [N] of at least float32: the sum over its tokens that count.

    hidden: the role's states of the batch, [T, H], where they are there already.
    """
    hidden = role.hidden(batch) if hidden is None else hidden
    logps = token_logps(hidden, role.head, batch.targets, batch.target_rows)
    return sequence_sums(logps, batch.target_rows, batch.sequence_ids, len(batch.seq_lens))


def answer_lengths(batch: Batch, dtype: torch.dtype) -> Tensor:
    """Return the number of targets of each sequence, [N], 1 for a sequence without any: it is divided by."""
    ones = torch.ones_like(batch.target_rows, dtype=dtype)
    return sequence_sums(ones, batch.target_rows, batch.sequence_ids, len(batch.seq_lens)).clamp(min=1)


def reference_logps(roles: Mapping[str, Role], batch: Batch, *, in_data: bool = True) -> Tensor:
    """Return the reference's log p of each sequence, [N], without gradient: from the data where it has them, else from the role.

    in_data: False where values of the data cannot be used. Raises ConfigError when there is neither.
    """
    given = batch.extras.get(REFERENCE_COLUMN)
    if in_data and isinstance(given, Tensor):
        return given
    if "reference" not in roles:
        lack = f"the data has no {REFERENCE_COLUMN}" if in_data else "mismatched answers need one"
        raise ConfigError(
            f"there is no reference: the run has no such model, and {lack}",
            fix="set reference={} for a frozen copy of the model, or train an adapter",
        )
    with torch.no_grad():
        return answer_logps(roles["reference"], batch)
