"""Steps as an engine gives them to an executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pegboard.types import StepPlan


def prompt_plan(ids: Sequence[int], rows: Sequence[int], *, page_size: int = 8, **changes: Any) -> StepPlan:
    """Return a step over one prompt of at most a page, in slot 1 and page 1, that wants a greedy token for each of `rows`.

    changes: further fields of `StepPlan`.
    """
    count = len(ids)
    made = StepPlan(
        step=1,
        input_ids=np.array(ids),
        positions=np.arange(count),
        slots=np.array([1], dtype=np.int32),
        query_lens=np.array([count], dtype=np.int32),
        seq_lens=np.array([count], dtype=np.int32),
        slot_mapping=np.arange(page_size, page_size + count),
        num_decodes=0,
        table=(np.array([1]), np.array([0]), np.array([1])),
        logits_indices=np.array(rows, dtype=np.int64),
        logits_slots=np.ones(len(rows), dtype=np.int32),
    )
    return replace(made, **changes)
