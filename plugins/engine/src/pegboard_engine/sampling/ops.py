"""The ops of sampling that a platform may replace, with their torch implementations: tokens of rows, penalties, log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegboard.ops import register
from pegboard_engine.sampling.blocks import draw, greatest, mass
from pegboard_engine.sampling.cuts import keep

PROMPT = 1 << 30
"""Added to an id's count when the prompt holds it."""

_CHUNK = {"cpu": 1 << 21}
_LARGE_CHUNK = 1 << 28
"""Logits that are worked on at once: of which there are float32 copies."""

Column = np.ndarray[Any, Any] | None


@register(
    "sample",
    "(logits [M, V], temperature [M] float32 | None, uniform [M] float64, top_k [M] int32, top_p, min_p, typical_p [M] float32 | None) -> "
    "(ids [M] int64, greatest logits [M] float32); all but logits are numpy arrays, of a temperature of 0 is the greatest",
)
def sample(
    logits: Tensor,
    temperature: Column = None,
    uniform: Column = None,
    top_k: Column = None,
    top_p: Column = None,
    min_p: Column = None,
    typical_p: Column = None,
) -> tuple[Tensor, Tensor]:
    """Choose an id for each row: its greatest logit, the first of equals, or where its uniform number falls among what the cut-offs keep.

    A row with a logit that is not a number has a greatest that is none; its id means nothing.
    """
    at_once = max(1, _CHUNK.get(logits.device.type, _LARGE_CHUNK) // logits.shape[1])
    parts = [greatest(part.float()) for part in logits.split(at_once)]
    ids, values = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True))
    if temperature is None or uniform is None:
        return ids, values
    drawn = np.flatnonzero(temperature > 0)
    for start in range(0, len(drawn), at_once):
        rows = drawn[start : start + at_once]
        where = torch.from_numpy(rows).to(logits.device)
        part = logits if len(rows) == len(logits) else logits[where]
        heat, numbers = (torch.from_numpy(column[rows]).to(logits.device) for column in (temperature, uniform))
        # Rows whose greatest is not finite come to nothing.
        weights = torch.sub(part.float(), values[where][:, None]).div_(heat[:, None]).exp_()
        weights = keep(weights, *(None if cut is None else cut[rows] for cut in (top_k, top_p, min_p, typical_p)))
        ids[where] = draw(weights, numbers)
    return ids, values


@register(
    "penalise_",
    "(logits [M, V] float32, rows [P] int64, counts [S, V] int32, places [P] int64, penalties [P, 3] float32, listed [P, L] int64, "
    "ahead [P, K] int64 | None) -> logits; in place",
)
def penalise_(
    logits: Tensor,
    rows: Tensor,
    counts: Tensor,
    places: Tensor,
    penalties: Tensor,
    listed: Tensor,
    ahead: Tensor | None = None,
) -> Tensor:
    """Lower the logits of ids that were there before.

    counts: how often each id stands in an output, and `PROMPT` more where the prompt holds it; row i reads row places[i]. listed: ids
    among which are all that have a count. ahead: proposed ids that precede the row, -1 for none. Repetition (arXiv:1909.05858) divides
    positive logits of ids in prompt or output and multiplies others; then presence and frequency are subtracted.
    """
    if ahead is not None:
        listed = torch.cat([listed, ahead.clamp(min=0)], 1)
    found = counts[places[:, None], listed]
    for column in [] if ahead is None else ahead.unbind(1):
        found += listed == column[:, None]
    repetition, presence, frequency = penalties[:, :, None].unbind(1)
    # An id that is listed twice gets the same value twice: the new one is made from the old logit.
    where = (rows[:, None], listed)
    old = logits[where]
    new = torch.where(found > 0, torch.where(old > 0, old / repetition, old * repetition), old)
    found &= PROMPT - 1
    logits[where] = new - frequency * found - presence * (found > 0)
    return logits


@register(
    "logprob_sums",
    "(logits [R, V], ids [R] int64) -> (log of the sum of exponentials [R] float64, ranks of the ids [R] int64)",
)
def logprob_sums(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is taken off logits to make log-probabilities, and the place of each id in its row, from 1 on; ties share one."""
    logits = logits.float()
    most = greatest(logits)[1][:, None]
    buffer = (logits - most).exp_()
    base = most.squeeze(1).double() + mass(buffer).log()
    return base, torch.gt(logits, logits.gather(1, ids[:, None]), out=buffer).sum(1).long() + 1
