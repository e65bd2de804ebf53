"""The sampler against the definitions, one row at a time in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegboard.types import SamplingParams
from pegboard_engine.sampling.columns import SamplingColumns, bitmask
from pegboard_engine.sampling.sampler import Sampled, Sampler
from plugins.engine.tests.sampling import oracle
from plugins.engine.tests.sampling.oracle import Row

VOCAB = 200


def run(rows: Sequence[Row], logits: Tensor | None = None, sampler: Sampler | None = None) -> Sampled:
    """Sample rows, each in a slot of its own, as their first step."""
    vocab = len(rows[0].logits)
    columns = SamplingColumns(len(rows), vocab)
    for slot, row in enumerate(rows):
        columns.set(
            slot,
            row.params,
            seed=row.seed,
            answer=row.answer,
            end_ids=row.ends,
            bad_words=row.words,
            prompt_ids=row.prompt,
            output_ids=row.output,
        )
    masks = {i: bitmask(row.allowed, vocab) for i, row in enumerate(rows) if row.allowed is not None}
    positions = np.array([len(row.output) for row in rows])
    batch = columns.batch(np.arange(len(rows), dtype=np.int32), positions, masks)
    given = torch.tensor(np.array([row.logits for row in rows]), dtype=torch.float32) if logits is None else logits
    return (sampler or Sampler(vocab, "cpu")).sample(given, batch)


def check(rows: Sequence[Row]) -> int:
    """Compare with the oracle, and return how many rows were decided clearly enough to be compared."""
    sampled = run(rows)
    compared = 0
    for row, token, valid in zip(rows, sampled.ids.tolist(), sampled.valid.tolist(), strict=True):
        wanted = oracle.answer(row, oracle.uniform_of(row))
        assert valid == (wanted.token is not None)
        if valid and wanted.margin > 1e-5:
            assert token == wanted.token
            compared += 1
    return compared


def some(options: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


IDS = st.integers(0, VOCAB - 1)
# As float32, since that is how they are held.
SHARES = st.floats(0.0625, 0.9990234375, width=32)
PARAMS = some(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.integers(0, VOCAB + 5),
        "top_p": SHARES,
        "min_p": st.floats(0, 0.875, width=32),
        "typical_p": SHARES,
        "repetition_penalty": st.sampled_from([0.8, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([-1.5, 0.0, 0.7]),
        "frequency_penalty": st.sampled_from([-0.3, 0.0, 0.9]),
        "logit_bias": st.dictionaries(IDS, st.floats(-8, 8, width=16), max_size=4),
        "allowed_ids": st.none() | st.lists(IDS, min_size=1, max_size=60).map(tuple),
        "min_tokens": st.integers(0, 6),
    }
)


@st.composite
def rows(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Row:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.5, 2.0, 6.0]))
    logits = (generator.standard_normal(VOCAB) * scale).astype(np.float32)
    few = st.lists(st.integers(0, 12), max_size=8)
    return Row(
        logits=logits.tolist(),
        params=SamplingParams(**draw(PARAMS)),
        prompt=draw(few),
        output=draw(few),
        seed=draw(st.integers(0, 2**63 - 1)),
        answer=draw(st.integers(0, 3)),
        ends=draw(st.lists(IDS, max_size=3)),
        words=draw(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), max_size=4)),
        allowed=draw(st.none() | st.lists(IDS, min_size=20, max_size=60)),
    )


@given(st.lists(rows(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_every_combination(rows: list[Row]) -> None:
    check(rows)


@given(st.lists(rows(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_every_logit_before_the_choice(rows: list[Row]) -> None:
    """Edits change float32 logits in place: each of them is as defined, likely to be chosen or not."""
    logits = torch.tensor([row.logits for row in rows])
    run(rows, logits)
    for mine, row in zip(logits.double(), rows, strict=True):
        wanted = torch.tensor(oracle.edited(row), dtype=torch.float64)
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


def test_most_combinations_are_decided_clearly() -> None:
    """The comparison above leaves few rows out."""
    generator = np.random.default_rng(3)
    base = Row(generator.standard_normal(VOCAB).tolist(), SamplingParams(top_p=0.9, top_k=30, min_p=0.01))
    assert check([replace(base, seed=seed) for seed in range(300)]) > 270


@given(st.lists(rows(), min_size=2, max_size=6))
@settings(deadline=None, max_examples=15)
def test_a_row_is_the_same_alone_and_in_a_crowd(rows: list[Row]) -> None:
    together = run(rows)
    for i, row in enumerate(rows):
        alone = run([row])
        assert bool(alone.valid[0]) == bool(together.valid[i])
        if together.valid[i]:
            assert int(alone.ids[0]) == int(together.ids[i])


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 257, 5000])
def test_any_width_of_vocabulary(vocab: int) -> None:
    generator = np.random.default_rng(vocab)
    cases = [
        {},
        {"temperature": 0.0},
        {"top_k": 3},
        {"top_p": 0.6},
        {"typical_p": 0.7},
        {"min_p": 0.2},
        {"top_p": 0.99},
    ]
    made = [
        Row((generator.standard_normal(vocab) * 2).tolist(), SamplingParams(**case), seed=seed)
        for case in cases
        for seed in range(5)
    ]
    for row in made:
        row.logits = np.asarray(row.logits, np.float32).tolist()
        row.params = replace(
            row.params, **{k: float(np.float32(getattr(row.params, k))) for k in ("top_p", "min_p", "typical_p")}
        )
    assert check(made) > 20


def test_a_vocabulary_of_real_width() -> None:
    """Nuclei within and beyond the first guess, the last block short."""
    generator = np.random.default_rng(1)
    vocab = 50_257
    sharp, flat = (np.float32(generator.standard_normal(vocab) * scale).tolist() for scale in (6, 1))
    cases = [{"top_p": 0.5}, {"top_k": 40, "top_p": 0.75}, {"min_p": 0.25}, {"typical_p": 0.5}]
    made = [Row(values, SamplingParams(**case), seed=i) for values in (sharp, flat) for i, case in enumerate(cases)]
    assert check(made) > 5


# Statistics


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"typical_p": 0.5},
    {"repetition_penalty": 1.7, "presence_penalty": 0.5, "frequency_penalty": -0.25},
    {"temperature": 0.9, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]


def chi_square_is_small(found: np.ndarray, wanted: dict[int, float], count: int) -> bool:
    """Whether counts by id are within the 99.99 % quantile, by Wilson and Hilferty's approximation."""
    expected = {token: p * count for token, p in wanted.items()}
    pooled = [token for token, n in expected.items() if n >= 5]
    statistic = sum((found[token] - expected[token]) ** 2 / expected[token] for token in pooled)
    freedom = max(len(pooled) - 1, 1)
    limit: float = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic < limit


@pytest.mark.parametrize("case", CASES, ids=str)
def test_distribution_over_seeds(case: dict[str, Any]) -> None:
    values = (np.random.default_rng(1).standard_normal(40) * 1.5).astype(np.float32)
    count = 4000
    row = Row(values.tolist(), SamplingParams(**case), prompt=[3, 7], output=[7, 9, 7])
    sampled = run([replace(row, seed=seed) for seed in range(count)])
    wanted = oracle.answer(row, 0.5).kept
    assert set(sampled.ids.tolist()) <= set(wanted)
    assert chi_square_is_small(np.bincount(sampled.ids.numpy(), minlength=40), wanted, count)


def test_distribution_over_positions() -> None:
    values = (np.random.default_rng(2).standard_normal(40) * 1.5).astype(np.float32)
    columns = SamplingColumns(1, 40)
    columns.set(0, SamplingParams(), seed=5)
    count = 4000
    batch = columns.batch(np.zeros(count, np.int32), np.arange(count))
    ids = Sampler(40, "cpu").sample(torch.from_numpy(values).expand(count, 40).clone(), batch).ids
    wanted = oracle.answer(Row(values.tolist(), SamplingParams()), 0.5).kept
    assert chi_square_is_small(np.bincount(ids.numpy(), minlength=40), wanted, count)


# Edges


def test_ties_stay_together() -> None:
    values = [2.0, 1.0, 2.0, 1.0, 1.0, 0.0]
    for case, kept in (({"top_k": 1}, {0, 2}), ({"top_k": 3}, {0, 1, 2, 3, 4}), ({"top_p": 0.5}, {0, 2})):
        sampled = run([Row(values, SamplingParams(**case), seed=seed) for seed in range(200)])
        assert set(sampled.ids.tolist()) == kept


def test_greedy_takes_the_first_of_equals() -> None:
    values = torch.zeros(3, 700)
    values[0, [650, 3, 300]] = 5.0
    values[1, [699, 650]] = 5.0
    for logits in (values, values.bfloat16()):
        assert Sampler(700, "cpu").sample(logits.clone(), None).ids.tolist() == [3, 650, 0]


def test_a_nucleus_wider_than_the_first_guess() -> None:
    ids = run([Row([0.0] * 3000, SamplingParams(top_p=0.9), seed=seed) for seed in range(200)]).ids
    # All ids tie at the cut-off, so none may be dropped for its place.
    assert int(ids.max()) > 2500


@pytest.mark.parametrize("temperature", [1e-40, 1e-5, 1e5, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    values = [1.0, 3.0, -math.inf, 2.0] + [-math.inf] * 60
    sampled = run([Row(values, SamplingParams(temperature=temperature), seed=seed) for seed in range(100)])
    assert sampled.valid.all()
    assert set(sampled.ids.tolist()) == ({1} if temperature < 1 else {0, 1, 3})


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("case", [{"temperature": 0.0}, *CASES], ids=str)
def test_rows_that_are_not_finite_are_told_and_spoil_no_other(wrong: float, case: dict[str, Any]) -> None:
    generator = np.random.default_rng(5)
    made = [Row(generator.standard_normal(300).tolist(), SamplingParams(**case), seed=i) for i in range(3)]
    broken = replace(made[1], logits=[*made[1].logits[:99], wrong, *made[1].logits[100:]])
    sampled = run([made[0], broken, made[2]])
    assert sampled.valid.tolist() == [True, False, True]
    assert 0 <= int(sampled.ids[1]) < 300
    assert [int(sampled.ids[0]), int(sampled.ids[2])] == run([made[0], made[2]]).ids.tolist()


def test_a_row_without_any_allowed_id_is_told() -> None:
    forbid = SamplingParams(allowed_ids=(3, 4), min_tokens=5)
    sampled = run([Row([0.0] * 10, forbid, ends=[3, 4]), Row([0.0] * 10, forbid, ends=[3])])
    assert sampled.valid.tolist() == [False, True]
    assert int(sampled.ids[1]) == 4


def test_half_precision_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 500, generator=generator).bfloat16()
    made = [
        Row(row.tolist(), SamplingParams(temperature=i % 2 * 1.0, top_p=0.8), seed=i)
        for i, row in enumerate(logits.float())
    ]
    assert run(made, logits.clone()).ids.tolist() == run(made).ids.tolist()


def test_more_rows_than_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pegboard_engine.sampling import logprobs, ops

    generator = np.random.default_rng(9)
    made = [
        Row(
            generator.standard_normal(100).tolist(),
            SamplingParams(temperature=i % 3 / 2, top_p=0.9, logprobs=i % 4),
            seed=i,
        )
        for i in range(23)
    ]
    whole = run(made)
    monkeypatch.setitem(ops._CHUNK, "cpu", 500)
    monkeypatch.setattr(logprobs, "_CHUNK", 300)
    parts = run(made)
    assert whole.ids.tolist() == parts.ids.tolist()
    assert whole.logprobs is not None and parts.logprobs is not None
    assert whole.logprobs.tokens() == parts.logprobs.tokens()


# Random numbers


def test_stream_is_splitmix() -> None:
    """The published generator's numbers for the seed 1234567."""
    from pegboard_engine.sampling.streams import uniform

    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    seeds = np.full(4, 1234567, np.uint64)
    assert uniform(seeds, np.arange(4)).tolist() == [(value >> 11) / 2**53 for value in published]
    assert [oracle.splitmix(1234567, i) for i in range(4)] == published


def test_streams_of_answers_and_neighbouring_seeds_differ() -> None:
    from pegboard_engine.sampling.streams import stream, uniform

    streams = [stream(seed, answer) for seed in range(50) for answer in range(50)]
    assert len(set(streams)) == 2500
    seeds = np.array(streams, np.uint64)
    values = np.stack([uniform(seeds, np.full(2500, position)) for position in range(20)])
    assert ((values >= 0) & (values < 1)).all() and len(np.unique(values)) == values.size
    assert abs(values.mean() - 0.5) < 0.005 and abs(values.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.02
