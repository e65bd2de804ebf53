"""Log-probabilities against double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pegboard.types import SamplingParams
from pegboard_engine.sampling.blocks import top_ids, top_values
from pegboard_engine.sampling.columns import SamplingColumns
from pegboard_engine.sampling.logprobs import Logprobs, logprobs_of
from pegboard_engine.sampling.sampler import Sampler
from plugins.engine.tests.sampling import oracle


@pytest.mark.parametrize("vocab", [1, 7, 64, 1000, 4321])
def test_values_ranks_and_best(vocab: int) -> None:
    logits = torch.randn(5, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    ids = torch.randint(vocab, (5,), generator=torch.Generator().manual_seed(1))
    num = min(vocab, 6)
    found = logprobs_of(logits.clone(), ids, num, extra_ids=[0, vocab - 1]).tokens()
    for row, token, one in zip(logits.tolist(), ids.tolist(), found, strict=True):
        right = oracle.logprobs(row)
        order = np.argsort(-right, kind="stable")
        assert one.token_id == token
        assert one.logprob == pytest.approx(right[token], abs=1e-5)
        assert one.rank == order.tolist().index(token) + 1
        assert [pair[0] for pair in one.top] == order[:num].tolist()
        assert [pair[1] for pair in one.top] == pytest.approx(right[order[:num]].tolist(), abs=1e-5)
        assert [pair[0] for pair in one.extra] == [0, vocab - 1]
        assert [pair[1] for pair in one.extra] == pytest.approx([right[0], right[vocab - 1]], abs=1e-5)


def test_the_whole_vocabulary() -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    (one, two) = logprobs_of(logits, torch.tensor([4, 5]), np.array([-1, 2])).tokens()
    assert len(one.top) == 300 and len(two.top) == 2
    assert math.fsum(math.exp(value) for _, value in one.top) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [1, 5, 20, 150])
def test_equal_values_come_by_id(count: int) -> None:
    """However many were asked for, so that a row's answer does not depend on what others ask."""
    values = torch.randint(-3, 4, (6, 2000), generator=torch.Generator().manual_seed(2)).float()
    values[:, 700] = -0.0
    wanted = np.argsort(-values.numpy(), axis=1, kind="stable")[:, :count]
    assert top_ids(values, count).tolist() == wanted.tolist()
    assert top_values(values, count).tolist() == np.take_along_axis(values.numpy(), wanted, 1).tolist()


def test_they_are_of_the_logits_as_they_came() -> None:
    """Whatever is asked of sampling; only rows that ask have any."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(4, 100, generator=generator)
    columns = SamplingColumns(4, 100)
    columns.set(0, SamplingParams(), seed=0)
    columns.set(1, SamplingParams(logprobs=2, logit_bias={3: 50.0}, presence_penalty=1.0, temperature=0.5), seed=0)
    columns.set(2, SamplingParams(logprobs=0, temperature=0.0, allowed_ids=(8,), top_k=1), seed=0)
    columns.set(3, SamplingParams(logprob_ids=(9, 1), temperature=0.0), seed=0)
    sampled = Sampler(100, "cpu").sample(
        logits.clone(), columns.batch(np.arange(4, dtype=np.int32), np.zeros(4, np.int64))
    )
    assert sampled.logprobs is not None
    assert sampled.logprobs.rows.tolist() == [1, 2, 3]
    one, two, three = sampled.logprobs.tokens()
    right = [oracle.logprobs(row) for row in logits.tolist()]
    assert (one.token_id, two.token_id) == (3, 8)
    assert one.logprob == pytest.approx(right[1][3], abs=1e-5)
    assert [token for token, _ in one.top] == np.argsort(-right[1])[:2].tolist()
    assert two.logprob == pytest.approx(right[2][8], abs=1e-5) and two.top == ()
    assert two.rank == (right[2] > right[2][8]).sum() + 1
    assert three.extra == (pytest.approx((9, right[3][9]), abs=1e-5), pytest.approx((1, right[3][1]), abs=1e-5))
    assert three.rank == 1 and one.extra == ()


def test_they_travel() -> None:
    found = logprobs_of(torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3]), 4, [7])
    arrays = found.pack()
    assert all(isinstance(array, np.ndarray) for array in arrays)
    assert Logprobs.unpack(arrays).tokens() == found.tokens()


def test_no_rows() -> None:
    assert logprobs_of(torch.zeros(0, 50), torch.zeros(0, dtype=torch.int64), 3, [1]).tokens() == []
