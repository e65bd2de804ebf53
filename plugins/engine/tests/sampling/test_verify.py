"""Verification of proposals: the tokens that would have come without them."""

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
from pegboard_engine.sampling.columns import SamplingColumns
from pegboard_engine.sampling.sampler import Sampler

VOCAB = 12
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 8},
    {"temperature": 1.0, "repetition_penalty": 1.6},
    {"temperature": 0.0, "frequency_penalty": 1.2, "presence_penalty": 0.4},
    {"temperature": 1.0, "bad_words": ("x",)},
    {"temperature": 0.7, "min_tokens": 3, "frequency_penalty": -0.5, "bad_words": ("x",)},
]
WORDS = [[1, 2, 3], [4, 4], [6]]


def logits_after(tokens: list[int]) -> Tensor:
    """Return what a model gives after these tokens: a row that depends on the last three."""
    seed = 0
    for token in tokens[-3:]:
        seed = seed * 31 + token + 1
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 1.5


def columns_of(params: list[dict[str, Any]], prompts: list[list[int]]) -> SamplingColumns:
    columns = SamplingColumns(len(params), VOCAB)
    for slot, (fields, prompt) in enumerate(zip(params, prompts, strict=True)):
        words = WORDS if "bad_words" in fields else []
        columns.set(slot, SamplingParams(**fields), seed=slot, end_ids=[0, 5], bad_words=words, prompt_ids=prompt)
    return columns


def plainly(params: list[dict[str, Any]], prompts: list[list[int]], count: int) -> list[list[int]]:
    """Return the outputs without proposals."""
    columns, sampler = columns_of(params, prompts), Sampler(VOCAB, "cpu")
    outputs: list[list[int]] = [[] for _ in params]
    for position in range(count):
        logits = torch.stack([logits_after(p + o) for p, o in zip(prompts, outputs, strict=True)])
        batch = columns.batch(np.arange(len(params), dtype=np.int32), np.full(len(params), position))
        for output, token in zip(outputs, sampler.sample(logits, batch).ids.tolist(), strict=True):
            output.append(token)
    return outputs


@given(st.lists(st.sampled_from(PARAMS), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_the_tokens_are_those_that_come_without_proposals(params: list[dict[str, Any]], seed: int) -> None:
    """Proposals are right, wrong, or right at first, of any lengths, and none at times."""
    generator = np.random.default_rng(seed)
    prompts = [generator.integers(0, VOCAB, 3).tolist() for _ in params]
    wanted = plainly(params, prompts, 20)
    columns, sampler = columns_of(params, prompts), Sampler(VOCAB, "cpu")
    outputs: list[list[int]] = [[] for _ in params]
    accepted_in_all = 0
    while min(map(len, outputs)) < 12:
        proposed = []
        for right, output in zip(wanted, outputs, strict=True):
            guess = right[len(output) : len(output) + generator.integers(0, 5)]
            if guess and generator.random() < 0.5:
                guess[generator.integers(0, len(guess))] = int(generator.integers(0, VOCAB))
            proposed.append(guess)
        rows = [len(guess) + 1 for guess in proposed]
        slots = np.repeat(np.arange(len(params), dtype=np.int32), rows)
        positions = np.concatenate([len(o) + np.arange(n) for o, n in zip(outputs, rows, strict=True)])
        logits = torch.stack(
            [
                logits_after(prompt + output + guess[:j])
                for prompt, output, guess in zip(prompts, outputs, proposed, strict=True)
                for j in range(len(guess) + 1)
            ]
        )
        verified = sampler.verify(logits, columns.batch(slots, positions), proposed)
        assert verified.valid.all()
        start = 0
        for output, guess, count in zip(outputs, proposed, verified.accepted.tolist(), strict=True):
            assert 0 <= count <= len(guess)
            accepted_in_all += count
            output += verified.ids[start : start + count + 1].tolist()
            start += len(guess) + 1
    assert [o[:12] for o in outputs] == [w[:12] for w in wanted]
    assert accepted_in_all > 0


def chi_square(found: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Return the statistic and its 99.99 % quantile, by Wilson and Hilferty's approximation."""
    expected = probabilities * found.sum()
    pooled = expected >= 5
    freedom = max(int(pooled.sum()) - 1, 1)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    return float(((found - expected)[pooled] ** 2 / expected[pooled]).sum()), limit


def test_the_distribution_is_the_models() -> None:
    """Over 10,000 seeds: a proposal stands as often as the model gives it, and what comes in its place has the rest's distribution."""
    count = 10_000
    first, second = logits_after([1]), logits_after([1, 2])
    guess = int(first.topk(3).indices[2])
    columns = SamplingColumns(count, VOCAB)
    for slot in range(count):
        columns.set(slot, SamplingParams(temperature=0.9), seed=slot)
    batch = columns.batch(np.repeat(np.arange(count, dtype=np.int32), 2), np.tile([0, 1], count))
    verified = Sampler(VOCAB, "cpu").verify(torch.stack([first, second]).repeat(count, 1), batch, [[guess]] * count)
    p = (first.double() / 0.9).softmax(0).numpy()
    q = (second.double() / 0.9).softmax(0).numpy()
    accepted, ids = verified.accepted.numpy(), verified.ids.numpy().reshape(count, 2)
    assert abs(accepted.mean() - p[guess]) < 4 * math.sqrt(p[guess] * (1 - p[guess]) / count)
    statistic, limit = chi_square(np.bincount(ids[:, 0], minlength=VOCAB), p)
    assert statistic < limit
    rejected = np.bincount(ids[accepted == 0, 0], minlength=VOCAB)
    rest = np.where(np.arange(VOCAB) == guess, 0, p)
    assert rejected[guess] == 0
    statistic, limit = chi_square(rejected, rest / rest.sum())
    assert statistic < limit
    statistic, limit = chi_square(np.bincount(ids[accepted == 1, 1], minlength=VOCAB), q)
    assert statistic < limit


def test_greedy_without_a_batch() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(3))
    best = logits.argmax(1).tolist()
    other = (best[1] + 1) % VOCAB
    verified = Sampler(VOCAB, "cpu").verify(logits, None, [[best[0], other], [], np.array([best[4]], np.int32)])
    assert verified.ids.tolist() == best
    assert verified.accepted.tolist() == [1, 0, 1]


def test_a_row_that_is_not_finite_ends_its_proposal() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[:, 3] = 1.0
    logits[1, 5] = math.nan
    verified = Sampler(VOCAB, "cpu").verify(logits, None, [[3, 3, 3]])
    assert verified.accepted.tolist() == [1]
    assert verified.valid.tolist() == [True, False, True, True]


def test_rows_and_proposals_must_agree() -> None:
    with pytest.raises(ValueError, match="3 rows of logits for proposals that need 2"):
        Sampler(VOCAB, "cpu").verify(torch.zeros(3, VOCAB), None, [[1]])
