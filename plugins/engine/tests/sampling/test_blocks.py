"""Reductions by blocks against plain ones, and cut-offs on the way that other devices take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard_engine.sampling import blocks, cuts

SIZES = st.integers(1, 700)
LAST = 1 - 2**-53
"""The greatest uniform number."""


def weights_of(rows: int, vocab: int, seed: int, share: float) -> torch.Tensor:
    """Return random weights over twelve orders of magnitude, of which a share is 0, but one is 1."""
    generator = np.random.default_rng(seed)
    weights = np.exp(-generator.exponential(6, (rows, vocab))).astype(np.float32)
    weights[generator.random((rows, vocab)) < share] = 0
    weights[np.arange(rows), generator.integers(0, vocab, rows)] = 1
    return torch.from_numpy(weights)


@given(SIZES, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.99]))
@settings(deadline=None, max_examples=60)
def test_a_draw_inverts_the_cumulative_distribution(vocab: int, seed: int, share: float) -> None:
    """At random numbers, at both ends, and just beside every step; an id of weight 0 never comes."""
    weights = weights_of(1, vocab, seed, share)
    steps = weights[0].double().cumsum(0)
    steps = (steps / steps[-1])[:-1]
    uniform = torch.cat([torch.tensor([0.0, LAST], dtype=torch.float64), steps, (steps - 1e-9).clamp(min=0)])
    uniform = uniform.clamp(max=LAST)
    ids = blocks.draw(weights.expand(len(uniform), vocab), uniform)
    assert (weights[0, ids] > 0).all()
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), weights[0].double().cumsum(0)])
    target = uniform * cumulative[-1]
    # Within a block sums are float32.
    slack = 1e-6 * cumulative[-1]
    assert (cumulative[ids] <= target + slack).all() and (target <= cumulative[ids + 1] + slack).all()


@given(SIZES, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_greatest_and_mass(vocab: int, seed: int) -> None:
    values = torch.randint(-4, 5, (5, vocab), generator=torch.Generator().manual_seed(seed)).float()
    ids, most = blocks.greatest(values)
    assert ids.tolist() == values.numpy().argmax(1).tolist() and most.tolist() == values.amax(1).tolist()
    weights = weights_of(5, vocab, seed, 0.3)
    torch.testing.assert_close(blocks.mass(weights), weights.double().sum(1), rtol=1e-6, atol=0)


def test_a_row_sums_alike_alone_and_among_many() -> None:
    weights = weights_of(200, 5003, 1, 0.0)
    assert blocks.mass(weights)[7] == blocks.mass(weights[7:8])[0]
    uniform = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = [int(blocks.draw(weights[i : i + 1], uniform[i : i + 1])) for i in range(200)]
    assert blocks.draw(weights, uniform).tolist() == alone


CUTS: list[dict[str, Any]] = [
    {"top_p": [0.5, 0.9, 1.0, 0.999]},
    {"top_k": [3, 0, 500, 1], "top_p": [0.5, 0.9, 0.99, 1.0]},
    {"min_p": [0.1, 0.0, 0.5, 0.001], "top_p": [0.7, 0.7, 0.7, 0.7]},
    {"typical_p": [0.3, 1.0, 0.9, 0.6], "top_k": [0, 40, 0, 2000]},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_other_devices_keep_the_same(cut: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """There rows are sorted whole by torch, so that nothing waits for the device."""
    given = {name: np.array(value, np.int32 if name == "top_k" else np.float32) for name, value in cut.items()}
    weights = weights_of(4, 1500, 3, 0.2)
    here = cuts.keep(weights, **given)
    best = blocks.greatest(weights)
    monkeypatch.setattr(blocks, "_HOST", "elsewhere")
    there = cuts.keep(weights, **given)
    assert here.tolist() == there.tolist()
    assert not torch.equal(here, weights)
    assert [x.tolist() for x in blocks.greatest(weights)] == [x.tolist() for x in best]
