"""Columns by slot, and what travels."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from pegboard.types import SamplingParams
from pegboard_engine.sampling.batch import SamplingBatch
from pegboard_engine.sampling.columns import SamplingColumns, bitmask
from pegboard_engine.sampling.sampler import Sampler

VOCAB = 70
ALL: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 9,
    "top_p": 0.75,
    "min_p": 0.125,
    "typical_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {3: 1.0},
    "allowed_ids": tuple(range(0, VOCAB, 2)),
    "min_tokens": 4,
    "logprobs": 2,
    "logprob_ids": (5, 6),
    "processors": (("acme", {"x": 1}),),
}


def everything(columns: SamplingColumns, slot: int) -> None:
    words = [[7], [1, 2], [3, 4, 5]]
    columns.set(
        slot,
        SamplingParams(**ALL),
        seed=3,
        answer=1,
        end_ids=[0, 2],
        bad_words=words,
        prompt_ids=[1, 2],
        output_ids=[9],
    )


def test_plain_greedy_rows_are_no_batch() -> None:
    columns = SamplingColumns(3, VOCAB)
    columns.set(0, SamplingParams(temperature=0), seed=0)
    # Cut-offs mean nothing to a greedy row, nor do values that are off.
    columns.set(1, SamplingParams(temperature=0, top_k=5, top_p=0.5, seed=7), seed=7)
    columns.set(2, SamplingParams(temperature=0, min_tokens=3), seed=0, end_ids=())
    slots = np.array([2, 0, 1], np.int32)
    assert columns.batch(slots, np.zeros(3, np.int64)) is None
    assert columns.batch(slots[:0], np.zeros(0, np.int64)) is None
    assert columns.batch(slots, np.zeros(3, np.int64), {}) is None


def test_a_batch_holds_no_more_than_is_asked() -> None:
    columns = SamplingColumns(2, VOCAB)
    columns.set(0, SamplingParams(top_p=0.5), seed=1)
    columns.set(1, SamplingParams(temperature=0, top_k=3), seed=1)
    batch = columns.batch(np.array([1, 0], np.int32), np.zeros(2, np.int64))
    assert batch is not None and batch.temperature is not None and batch.top_p is not None
    assert {f.name for f in fields(batch) if getattr(batch, f.name) is not None} == {
        "slots",
        "temperature",
        "uniform",
        "top_p",
        "processors",
    }
    assert batch.temperature.tolist() == [0, 1] and batch.top_p.tolist() == [1, 0.5]


def test_a_slot_holds_nothing_of_who_had_it_before() -> None:
    columns = SamplingColumns(2, VOCAB)
    everything(columns, 0)
    columns.set(0, SamplingParams(temperature=1.0), seed=1)
    columns.set(1, SamplingParams(temperature=1.0), seed=1)
    batch = columns.batch(np.array([0, 1], np.int32), np.array([5, 5]))
    assert batch is not None and batch.uniform is not None
    assert batch.uniform[0] == batch.uniform[1]
    assert batch.top_k is batch.top_p is batch.edit_rows is batch.masks is batch.resets is batch.logprob_rows is None
    columns.clear(0)
    columns.clear(0)
    assert columns.batch(np.array([0], np.int32), np.array([5])) is None


def test_state_is_told_once_and_taken_back_once() -> None:
    columns = SamplingColumns(4, VOCAB)
    everything(columns, 2)
    first = columns.batch(np.array([2, 2, 2], np.int32), np.array([1, 2, 3]))
    second = columns.batch(np.array([2], np.int32), np.array([4]))
    assert first is not None and first.resets is not None and first.reset_ids is not None
    assert first.resets.tolist() == [[2, 7, 2, 1, 2]] and first.reset_ids.tolist() == [1, 2, 9]
    assert first.processors == {2: [("acme", {"x": 1})]}
    assert second is not None and second.resets is None and second.released is None
    columns.clear(2)
    columns.set(3, SamplingParams(), seed=0)
    third = columns.batch(np.array([3], np.int32), np.array([0]))
    assert third is not None and third.released is not None and third.released.tolist() == [2]
    fourth = columns.batch(np.array([3], np.int32), np.array([1]))
    assert fourth is not None and fourth.released is None


def test_ends_are_forbidden_until_min_tokens() -> None:
    columns = SamplingColumns(1, VOCAB)
    columns.set(0, SamplingParams(min_tokens=2), seed=0, end_ids=[5, 3])
    batch = columns.batch(np.zeros(4, np.int32), np.arange(4))
    assert batch is not None and batch.edit_rows is not None and batch.edit_ids is not None
    assert batch.edit_rows.tolist() == [0, 0, 1, 1] and batch.edit_ids.tolist() == [3, 5, 3, 5]


def test_words_are_a_head_and_the_id_that_would_end_them() -> None:
    columns = SamplingColumns(2, VOCAB)
    columns.set(0, SamplingParams(temperature=0), seed=0, bad_words=[[1, 2, 3, 4], [5, 6], [7]])
    columns.set(1, SamplingParams(temperature=0), seed=0, bad_words=[[8, 9]])
    batch = columns.batch(np.array([1, 0], np.int32), np.zeros(2, np.int64))
    assert batch is not None and batch.word_rows is not None and batch.word_ids is not None
    assert batch.word_heads is not None and batch.edit_ids is not None
    assert batch.word_rows.tolist() == [0, 1, 1] and batch.word_ids.tolist() == [9, 4, 6]
    assert batch.word_heads.tolist() == [[-1, -1, 8], [1, 2, 3], [-1, -1, 5]]
    assert batch.edit_ids.tolist() == [7]


def test_masks_of_grammars_and_allowed_ids_meet() -> None:
    columns = SamplingColumns(2, VOCAB)
    columns.set(0, SamplingParams(temperature=0, allowed_ids=(1, 2, 69)), seed=0)
    columns.set(1, SamplingParams(temperature=0), seed=0)
    mask = bitmask([2, 3, 69], VOCAB)
    batch = columns.batch(np.array([1, 0], np.int32), np.zeros(2, np.int64), {1: mask, 0: mask})
    assert batch is not None and batch.masks is not None and batch.mask_rows is not None
    assert batch.mask_rows.tolist() == [0, 1]
    assert batch.masks[0].tolist() == mask.tolist() and batch.masks[1].tolist() == bitmask([2, 69], VOCAB).tolist()
    assert mask.tolist() == bitmask([2, 3, 69], VOCAB).tolist()
    logits = torch.zeros(2, VOCAB)
    logits[:, [0, 3]] = 5.0
    assert Sampler(VOCAB, "cpu").sample(logits, batch).ids.tolist() == [3, 2]


def test_bits_of_masks() -> None:
    """Bit i % 32 of word i // 32 is id i."""
    mask = bitmask([0, 31, 33], 40)
    assert mask.dtype == np.int32 and mask.tolist() == [1 - 2**31, 2]


def test_a_batch_travels() -> None:
    columns = SamplingColumns(3, VOCAB)
    everything(columns, 1)
    columns.set(0, SamplingParams(presence_penalty=1), seed=0)
    columns.batch(np.array([0], np.int32), np.array([0]))
    columns.clear(0)
    columns.set(2, SamplingParams(), seed=0)
    batch = columns.batch(np.array([2, 1], np.int32), np.array([0, 0]), {0: bitmask([1], VOCAB)})
    assert batch is not None
    assert [f.name for f in fields(batch) if getattr(batch, f.name) is None] == []
    header, arrays = batch.pack()
    for array in arrays:
        assert isinstance(array, np.ndarray) and array.dtype.kind in "iuf"
        array.flags.writeable = False
    copy = SamplingBatch.unpack(json.loads(json.dumps(header)), arrays)
    for f in fields(batch):
        mine, other = getattr(batch, f.name), getattr(copy, f.name)
        assert np.array_equal(mine, other) if isinstance(mine, np.ndarray) else mine == other


@pytest.mark.parametrize("count", [1, 4])
def test_arrays_that_cannot_be_written_are_read(count: int) -> None:
    """They may lie in memory that another process owns."""
    columns = SamplingColumns(count, VOCAB)
    for slot in range(count):
        fields_ = {name: value for name, value in ALL.items() if name != "processors"}
        columns.set(
            slot,
            SamplingParams(**fields_),
            seed=slot,
            end_ids=[0],
            bad_words=[[1], [2, 3]],
            prompt_ids=[1],
            output_ids=[2],
        )
    slots = np.arange(count, dtype=np.int32)
    batch = columns.batch(slots, np.ones(count, np.int64), {0: bitmask(range(VOCAB), VOCAB)})
    assert batch is not None
    header, arrays = batch.pack()
    for array in arrays:
        array.flags.writeable = False
    logits = torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(0))
    sampled = Sampler(VOCAB, "cpu").sample(logits, SamplingBatch.unpack(header, arrays))
    assert sampled.valid.all() and sampled.logprobs is not None and len(sampled.logprobs.tokens()) == count


class Counter(TorchFunctionMode):
    """Counts what torch is asked to compute."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


CASES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"top_k": 10, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "logit_bias": {3: 1.0}, "min_tokens": 9},
    {"allowed_ids": tuple(range(30)), "logprobs": 3, "logprob_ids": (1, 2)},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_worked_on_together(case: dict[str, Any]) -> None:
    """The number of operations does not grow with the rows, at their first step, which brings their state, nor later."""
    counts = []
    for rows in (4, 64):
        columns, sampler = SamplingColumns(rows, VOCAB), Sampler(VOCAB, "cpu")
        for slot in range(rows):
            columns.set(slot, SamplingParams(**case), seed=slot, end_ids=[0], prompt_ids=[1, 2], output_ids=[3])
        slots = np.arange(rows, dtype=np.int32)
        for position in (1, 2):
            batch = columns.batch(slots, np.full(rows, position))
            logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1))
            with Counter() as counter:
                sampler.sample(logits, batch)
            counts.append(counter.count)
    assert counts[:2] == counts[2:]
    assert max(counts) < 250


def test_verifying_works_on_rows_together() -> None:
    counts = []
    for rows in (3, 30):
        columns, sampler = SamplingColumns(rows, VOCAB), Sampler(VOCAB, "cpu")
        for slot in range(rows):
            columns.set(slot, SamplingParams(presence_penalty=1.0, top_p=0.5), seed=slot)
        batch = columns.batch(np.repeat(np.arange(rows, dtype=np.int32), 3), np.tile([0, 1, 2], rows))
        with Counter() as counter:
            sampler.verify(torch.zeros(3 * rows, VOCAB), batch, [[1, 2]] * rows)
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_no_rows() -> None:
    columns, sampler = SamplingColumns(1, VOCAB), Sampler(VOCAB, "cpu")
    none = torch.zeros(0, VOCAB)
    sampled = sampler.sample(none, columns.batch(np.zeros(0, np.int32), np.zeros(0, np.int64)))
    assert sampled.ids.tolist() == [] and sampled.valid.tolist() == []
    assert sampler.verify(none, None, []).accepted.tolist() == []
