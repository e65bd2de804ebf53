"""The sampler against plain Python over one row at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegboard.types import SamplingParams
from pegboard_engine.request import Request
from pegboard_engine.sampler import sample, sampling_batch, uniform

VOCAB = 40


def request(tokens: list[int] | None = None, output: int = 0, seed: int = 0, **params: Any) -> Request:
    one = Request("r", tokens or [1], SamplingParams(**params), limit=100, seed=seed, stop_ids=frozenset())
    one.tokens += [0] * output
    return one


def drawn(logits: Tensor, *requests: Request) -> list[int]:
    ids, valid = sample(logits.clone(), sampling_batch(requests))
    assert valid.all()
    return ids.tolist()


def kept(logits: Tensor, params: SamplingParams, seen: list[int]) -> dict[int, float]:
    """Return id -> probability as the definitions say, one id at a time, in double precision."""
    values = [float(value) for value in logits.double()]
    for token in set(seen):
        penalty = params.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    values = [value / params.temperature for value in values]
    order = sorted(range(len(values)), key=lambda token: -values[token])
    if params.top_k:
        order = order[: params.top_k]
    weights = {token: math.exp(values[token] - values[order[0]]) for token in order}
    if params.top_p < 1:
        total, mass, nucleus = sum(weights.values()), 0.0, {}
        for token in order:
            nucleus[token] = weights[token]
            mass += weights[token]
            if mass >= params.top_p * total:
                break
        weights = nucleus
    weights = {token: weight for token, weight in weights.items() if weight >= params.min_p}
    total = sum(weights.values())
    return {token: weight / total for token, weight in sorted(weights.items())}


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 0.9, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_distribution(case: dict[str, Any]) -> None:
    """Chi-square over 4,000 seeds; its 99.99 % quantile by Wilson and Hilferty's approximation."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 1.5
    seen = [3, 7, 7, int(logits.argmax())]
    expected = kept(logits, SamplingParams(**case), seen)
    count = 4000
    requests = [request(list(seen), seed=seed, **case) for seed in range(count)]
    ids = drawn(logits.expand(count, VOCAB), *requests)
    assert set(ids) <= set(expected)
    found = np.bincount(ids, minlength=VOCAB)
    wanted = {token: p * count for token, p in expected.items()}
    pooled = [token for token, n in wanted.items() if n >= 5]
    statistic = sum((found[token] - wanted[token]) ** 2 / wanted[token] for token in pooled)
    freedom = max(len(pooled) - 1, 1)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=6), st.integers(0, 2**63 - 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_a_row_is_the_same_alone_and_in_a_crowd(cases: list[dict[str, Any]], seed: int, output: int) -> None:
    logits = torch.randn(len(cases), VOCAB, generator=torch.Generator().manual_seed(seed & 0xFFFF))
    requests = [request([2, 5], output, seed + i & (2**63 - 1), **case) for i, case in enumerate(cases)]
    together = drawn(logits, *requests)
    assert together == [drawn(logits[i : i + 1], one)[0] for i, one in enumerate(requests)]


def test_greedy_and_sampled_rows_mix() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    ids = drawn(logits, request(temperature=0), request(temperature=5.0, seed=3), request(temperature=0))
    assert [ids[0], ids[2]] == logits[[0, 2]].argmax(-1).tolist()


def test_greedy_with_a_penalty() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0]])
    assert drawn(logits, request([0], temperature=0, repetition_penalty=2.0)) == [1]


def test_one_kept_token_is_the_greatest() -> None:
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(4))
    for case in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        ids = drawn(logits, *(request(seed=i, temperature=2.0, **case) for i in range(8)))
        assert ids == logits.argmax(-1).tolist()


def test_a_nucleus_wider_than_the_first_guess() -> None:
    logits = torch.zeros(1, 3000)
    ids = [drawn(logits, request(seed=seed, temperature=1.0, top_p=0.9))[0] for seed in range(200)]
    # All ids tie at the cut-off, so none may be dropped for its place.
    assert max(ids) > 2500


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_told_and_spoil_no_other(wrong: float) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5))
    logits[1, 4] = wrong
    for case in ({"temperature": 0}, {"temperature": 1.0, "top_p": 0.5}):
        requests = [request(seed=i, **case) for i in range(3)]
        ids, valid = sample(logits.clone(), sampling_batch(requests))
        assert valid.tolist() == [True, False, True]
        assert [int(ids[0]), int(ids[2])] == drawn(logits[[0, 2]], requests[0], requests[2])


def test_uniform_numbers_depend_on_seed_and_position_alone() -> None:
    seeds = np.arange(100, dtype=np.uint64).repeat(100)
    positions = np.tile(np.arange(100, dtype=np.uint64), 100)
    values = uniform(seeds, positions)
    assert ((values >= 0) & (values < 1)).all()
    assert len(np.unique(values)) == values.size
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - 1 / 12) < 0.003
    grid = values.reshape(100, 100)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.05
    assert uniform(seeds[:1], positions[:1])[0] == values[0]
