"""From a schedule to the flat arrays of one step."""

from __future__ import annotations

from typing import Any

import numpy as np

from pegboard.types import StepPlan
from pegboard_engine.rows import pooled_rows, spread, told_places
from pegboard_engine.scheduler import Schedule
from pegboard_engine.table import Table


def build_plan(number: int, step: Schedule, table: Table, sampling: Any = None) -> StepPlan:
    """Return what the executor needs for a step, the M rows to sample from in the order of `step.sampled`.

    extras, where asked for: "more_rows": [P] int64 further rows whose hidden states are wanted, with "prompt": (how many of them are
    for prompt log-probabilities, their [.] target ids, the most alternatives) and "pool": [J, 2] int64 rows (first, stop) of the
    rest, whose sum is wanted, one for each embedding. "drafts": [M] proposed tokens of each sampled sequence; M then counts sequences,
    each of which has a row for every proposed token, whose ids are the last ones of its input, and one more. "extents": [N] tokens of
    each whole sequence, whose prompt may come in chunks, where the model's keys depend on it.
    """
    slots, begins, counts, decodes = step.slots, step.begins, step.counts, step.num_decodes
    if decodes == len(slots):
        ids, positions, owners, ends_at = step.decode_ids.astype(np.int64), begins, slots, np.arange(len(slots))
    else:
        owners = np.repeat(slots, counts)
        ends_at = counts.cumsum() - 1
        starts = ends_at + 1 - counts
        positions = np.arange(len(owners)) - np.repeat(starts - begins, counts)
        ids = table.tokens[owners, positions].astype(np.int64)
        ids[:decodes] = step.decode_ids
    size = table.page_size
    mapping = table.pages[owners, positions // size].astype(np.int64) * size + positions % size
    # What was found in the cache is not written again: others may be reading it.
    found = positions < table.reused[owners]
    if found.any():
        mapping[found] = positions[found] % size
    rows, drawn = ends_at[step.sampled], slots[step.sampled]
    extras = _extras(step, table, ends_at) if decodes < len(slots) else {}
    if step.drafts is not None:
        extras["drafts"] = step.drafts
        drawn, rows = spread(drawn, rows - step.drafts, step.drafts)
    if table.rope_limit is not None:
        extents = table.known[slots]
        # Sampling counted a token that is none of the input.
        extents[step.sampled] = (begins + counts)[step.sampled]
        extras["extents"] = extents
    return StepPlan(
        step=number,
        input_ids=ids,
        positions=positions,
        slots=slots.astype(np.int32),
        query_lens=counts.astype(np.int32),
        seq_lens=(begins + counts).astype(np.int32),
        slot_mapping=mapping,
        num_decodes=decodes,
        table=table.take_changes(),
        logits_indices=rows,
        logits_slots=drawn.astype(np.int32),
        sampling=sampling,
        adapters=table.adapters[slots] if table.num_adapted else None,
        extras=extras,
    )


def _extras(step: Schedule, table: Table, ends_at: np.ndarray) -> dict[str, Any]:
    """Rows that are wanted beside the sampled ones: of prompts whose log-probabilities are asked for, and of embeddings."""
    prompt_rows: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    pool_rows: list[np.ndarray] = []
    pools: list[tuple[int, int]] = []
    most, offset = 0, 0
    for index, request in enumerate(step.prefills, step.num_decodes):
        slot, begin, count = int(step.slots[index]), int(step.begins[index]), int(step.counts[index])
        first_row = int(ends_at[index]) + 1 - count
        if request.embeds:
            rows = pooled_rows(request, begin, count)
            if len(rows):
                pools.append((offset, offset + len(rows)))
                pool_rows.append(first_row + rows)
                offset += len(rows)
        elif places := told_places(request, begin, count):
            skipped = places.start - begin
            prompt_rows.append(np.arange(first_row + skipped, first_row + skipped + len(places)))
            targets.append(table.tokens[slot, places.start + 1 : places.stop + 1])
            most = max(most, request.params.prompt_logprobs or 0)
    extras: dict[str, Any] = {}
    if prompt_rows or pool_rows:
        extras["more_rows"] = np.concatenate([*prompt_rows, *pool_rows])
    if prompt_rows:
        extras["prompt"] = (np.concatenate(targets).astype(np.int64), most)
    if pool_rows:
        extras["pool"] = np.array(pools, dtype=np.int64)
    return extras
