"""From a schedule to the flat arrays of one step."""

from __future__ import annotations

import numpy as np
import torch

from pegboard.types import AttentionInputs, StepPlan
from pegboard_engine.request import Request
from pegboard_engine.sampler import sampling_batch
from pegboard_engine.scheduler import Schedule


def build_plan(step: int, schedule: Schedule, page_size: int) -> tuple[StepPlan, list[Request]]:
    """Return the step and the requests that get a token from it, in the order of its logits rows.

    Called after scheduling: a request's new tokens are those before `request.scheduled`.
    """
    total = sum(schedule.counts)
    arrays = np.empty((3, total), dtype=np.int64)
    ids, positions, slots = arrays
    rows, sampled, seq_lens, table, start = [], [], [], [], 0
    for request, count in zip(schedule.requests, schedule.counts, strict=True):
        end = request.scheduled
        begin, stop = end - count, start + count
        if count == 1:
            ids[start], positions[start] = request.tokens[begin], begin
            slots[start] = request.pages[begin // page_size] * page_size + begin % page_size
        else:
            where = np.arange(begin, end)
            ids[start:stop], positions[start:stop] = request.tokens[begin:end], where
            pages = np.array(request.pages, dtype=np.int64)
            slots[start:stop] = pages[where // page_size] * page_size + where % page_size
        if end == len(request.tokens):
            rows.append(stop - 1)
            sampled.append(request)
        seq_lens.append(end)
        table.append(request.pages)
        start = stop
    tensors = torch.from_numpy(arrays)
    attention = AttentionInputs(schedule.counts, seq_lens, table, tensors[2], schedule.num_decodes)
    plan = StepPlan(
        step, tensors[0], tensors[1], attention, torch.tensor(rows, dtype=torch.int64), sampling_batch(sampled)
    )
    return plan, sampled
