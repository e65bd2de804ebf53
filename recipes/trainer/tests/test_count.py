from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from pegboard_trainer.count import count_batches, estimate_batches
from pegboard_trainer.examples import Examples
from pegboard_trainer.packer import Batches, Packer

Make = Callable[..., Batches]


def test_all_batches_are_counted(batches: Make) -> None:
    options: dict[str, Any] = {"epochs": 2, "shuffle": False}
    assert count_batches(batches([[5]] * 7, Packer(10, window=1), **options)) == 7
    assert count_batches(batches([[5]] * 7, Packer(10, limit=1, window=1), **options)) == 14


@pytest.mark.parametrize("limit", [None, 4])
def test_a_sample_tells_the_number_of_batches(examples: Callable[..., Examples], limit: int | None) -> None:
    drawn = random.Random(0)
    lengths = [[min(int(drawn.expovariate(0.01)) + 2, 500)] for _ in range(6000)]
    exact = count_batches(Batches(examples(lengths, epochs=1), Packer(2000, limit)))
    source = examples(lengths)
    estimate = estimate_batches(source, Packer(2000, limit), 1500)
    assert estimate == pytest.approx(exact, rel=0.05)
    assert (source.counts.examples, source.next_key) == (0, (0, 0, 0))


def test_a_sample_of_everything_is_nearly_exact(examples: Callable[..., Examples]) -> None:
    lengths = [[5], [], [5, 5]] * 40
    assert estimate_batches(examples(lengths), Packer(10, window=1), 120) == pytest.approx(60)
