"""What the sampler remembers: after any way to the same output, the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.ops import kernel_table
from pegboard.types import SamplingParams
from pegboard_engine.sampling.columns import SamplingColumns
from pegboard_engine.sampling.sampler import Sampler
from pegboard_engine.sampling.state import Counts, Rows, Tails
from plugins.engine.tests.sampling import oracle
from plugins.engine.tests.sampling.oracle import Row

VOCAB = 30
KINDS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 0.0, "frequency_penalty": 2.0},
    {"bad_words": ("x",)},
    {"bad_words": ("x",), "repetition_penalty": 0.9, "presence_penalty": -1.0},
    {"temperature": 0.0},
]
WORDS = [[1, 2, 3], [4], [5, 6], [2, 2]]


def logits_of(slot: int, position: int) -> torch.Tensor:
    """Return what a model gives at an output position, one row."""
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1000 * slot + position)) * 2


class Loop:
    """A little engine: requests in slots, stepped and preempted at will."""

    def __init__(self, slots: int = 6) -> None:
        self.columns, self.sampler = SamplingColumns(slots, VOCAB), Sampler(VOCAB, "cpu")
        self.rows: dict[int, Row] = {}

    def start(self, slot: int, row: Row) -> None:
        self.rows[slot] = row
        self.columns.set(
            slot,
            row.params,
            seed=row.seed,
            bad_words=row.words,
            prompt_ids=row.prompt,
            output_ids=np.array(row.output, np.int32),
        )

    def step(self, slots: list[int]) -> None:
        positions = np.array([len(self.rows[slot].output) for slot in slots])
        logits = torch.cat([logits_of(s, p) for s, p in zip(slots, positions.tolist(), strict=True)])
        batch = self.columns.batch(np.array(slots, np.int32), positions)
        for slot, token in zip(slots, self.sampler.sample(logits, batch).ids.tolist(), strict=True):
            self.rows[slot] = replace(self.rows[slot], output=[*self.rows[slot].output, token])


def request(kind: dict[str, Any], seed: int) -> Row:
    return Row([], SamplingParams(**kind), prompt=[3, 9, 9], seed=seed, words=WORDS if "bad_words" in kind else [])


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["step", "step", "preempt", "restart"]), st.integers(0, 5), st.integers(0, 63)),
    max_size=25,
)


@given(ACTIONS)
@settings(deadline=None, max_examples=40)
def test_outputs_do_not_depend_on_what_happens_around_them(actions: list[tuple[str, int, int]]) -> None:
    """Any mix of steps of some slots, preemptions and new requests in old slots gives the tokens that the oracle gives."""
    loop, starts = Loop(), 0
    for slot, kind in enumerate(KINDS):
        loop.start(slot, request(kind, slot))
    for action, slot, mask in actions:
        if action == "step":
            loop.step([s for s in range(6) if (mask | 1) >> s & 1])
        elif action == "preempt":
            loop.columns.clear(slot)
            loop.start(slot, loop.rows[slot])
        else:
            starts += 1
            loop.start(slot, request(KINDS[(slot + starts) % len(KINDS)], 100 + starts))
    for slot, row in loop.rows.items():
        for position, token in enumerate(row.output):
            past = replace(row, logits=logits_of(slot, position)[0].tolist(), output=row.output[:position])
            wanted = oracle.answer(past, oracle.uniform_of(past))
            assert wanted.margin < 1e-5 or token == wanted.token


def test_released_slots_give_their_rows_back() -> None:
    loop = Loop(slots=100)
    for i in range(200):
        loop.start(i % 100, request(KINDS[4], i))
        loop.step([i % 100])
        loop.columns.clear(i % 100)
    assert loop.sampler._counts._counts.shape[0] == 4
    assert loop.sampler._tails._tails.shape[0] == 4


def test_a_slot_that_was_never_sampled_is_not_released() -> None:
    columns = SamplingColumns(2, VOCAB)
    columns.set(0, SamplingParams(presence_penalty=1), seed=0)
    columns.clear(0)
    columns.set(1, SamplingParams(), seed=0)
    batch = columns.batch(np.array([1], np.int32), np.array([0]))
    assert batch is not None and batch.released is None and batch.resets is None


def test_what_plain_requests_do_costs_no_state() -> None:
    loop = Loop()
    for slot in range(6):
        loop.start(slot, request({"temperature": slot % 2 * 1.0}, slot))
    loop.step(list(range(6)))
    assert loop.sampler._counts._counts.numel() == 0
    assert loop.sampler._tails._tails.numel() == 0


def test_rows_are_unique_and_reused() -> None:
    rows = Rows()
    taken = [rows.take(slot) for slot in range(9)]
    assert sorted(taken) == list(range(9)) and rows.size == 16
    assert rows.take(3) == taken[3]
    rows.release(3)
    rows.release(77)
    assert rows.take(50) == taken[3]
    assert rows.of(np.array([50, 0])).tolist() == [taken[3], taken[0]]


def test_a_list_longer_than_the_vocabulary_becomes_the_vocabulary() -> None:
    counts = Counts(5, torch.device("cpu"))
    counts.reset([0], [np.array([1])], [np.array([], np.int32)])
    tokens = [3, 3, 0, 4, 3, 0, 2, 3]
    for token in tokens:
        counts.append(np.array([0]), torch.tensor([[token]]), None)
    assert counts._listed.shape[1] == 5
    logits = torch.zeros(1, 5)
    counts.penalise_(kernel_table(), logits, torch.tensor([0]), np.array([0]), torch.tensor([[1.0, 0.0, 1.0]]), None)
    assert logits[0].tolist() == [-float(tokens.count(token)) for token in range(5)]


def test_tails_grow_and_keep_what_they_have() -> None:
    tails = Tails(torch.device("cpu"))
    tails.reset(0, np.array([7, 8, 9]), 2)
    tails.reset(1, np.array([1]), 4)
    assert tails.endings(np.array([0, 1]), None, None).tolist() == [[-2, -2, 8, 9], [-2, -2, -2, 1]]
    tails.append(np.array([1, 0]), torch.tensor([[5, 6], [3, 4]]), torch.tensor([2, 1]))
    assert tails.endings(np.array([0, 1]), None, None).tolist() == [[-2, 8, 9, 3], [-2, 1, 5, 6]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_host_may_be_a_step_ahead(kind: dict[str, Any]) -> None:
    """All batches are made before any token is known."""
    ahead, known = Loop(), Loop()
    for loop in (ahead, known):
        loop.start(0, request(kind, 4))
    batches = [ahead.columns.batch(np.array([0], np.int32), np.array([position])) for position in range(8)]
    ids = [int(ahead.sampler.sample(logits_of(0, i), batch).ids) for i, batch in enumerate(batches)]
    for _ in range(8):
        known.step([0])
    assert ids == list(known.rows[0].output)


@pytest.mark.parametrize("released", [False, True])
def test_nothing_is_left_of_who_had_a_row_before(released: bool) -> None:
    counts, tails = Counts(8, torch.device("cpu")), Tails(torch.device("cpu"))
    counts.reset([0], [np.array([1, 2])], [np.array([3, 3])])
    counts.append(np.array([0]), torch.tensor([[4]]), None)
    tails.reset(0, np.array([3, 3, 4]), 3)
    slot = 0
    if released:
        slot = 5
        counts.release(0)
        tails.release(0)
    counts.reset([slot], [np.array([1])], [np.array([6])])
    tails.reset(slot, np.array([6]), 3)
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0]])
    penalties = torch.tensor([[2.0, 0.25, 0.5]])
    counts.penalise_(kernel_table(), logits, torch.tensor([0]), np.array([slot]), penalties, None)
    assert logits.tolist() == [[1.0, 0.5, 1.0, 1.0, 1.0, 1.0, -2.75, -1.0]]
    assert tails.endings(np.array([slot]), None, None).tolist() == [[-2, -2, 6]]
