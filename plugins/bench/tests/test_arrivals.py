"""Gaps have the distribution that they are named after."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest

from pegboard.errors import ConfigError
from pegboard_bench.arrivals import arrivals, read_objectives, read_rates


def gaps(rate: float, burstiness: float, count: int = 20_000) -> list[float]:
    times = list(itertools.islice(arrivals(rate, burstiness, 0), count + 1))
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gamma(burstiness: float) -> None:
    found = gaps(5.0, burstiness)
    # A gamma distribution of shape k and mean m has the variance m² / k.
    assert statistics.mean(found) == pytest.approx(0.2, rel=0.03)
    assert statistics.pvariance(found) == pytest.approx(0.04 / burstiness, rel=0.08)


def test_poisson_gaps_are_exponential() -> None:
    found = gaps(5.0, 1.0)
    for seconds in (0.05, 0.2, 0.6):
        assert sum(gap > seconds for gap in found) / len(found) == pytest.approx(math.exp(-5 * seconds), abs=0.01)


def test_constant_and_infinite() -> None:
    assert gaps(4.0, math.inf, 10) == pytest.approx([0.25] * 10)
    assert gaps(math.inf, 1.0, 10) == [0.0] * 10
    assert gaps(3.0, 1.0, 10) == gaps(3.0, 1.0, 10)


def test_read_rates() -> None:
    assert read_rates("1,2.5,inf") == [1.0, 2.5, math.inf]
    for text in ("", "1,,2", "0", "-1", "nan", "fast"):
        with pytest.raises(ConfigError, match="is no rate"):
            read_rates(text)


def test_read_objectives() -> None:
    assert read_objectives(()) == {}
    assert read_objectives(("ttft:500,tpot:50", "e2el:3e3")) == {"ttft": 500.0, "tpot": 50.0, "e2el": 3000.0}
    with pytest.raises(ConfigError, match=r"there is no 'tfft' \(did you mean 'ttft'\?\)"):
        read_objectives(("tfft:5",))
    for text in ("ttft", "ttft:", "ttft:0", "ttft:nan"):
        with pytest.raises(ConfigError, match="is no limit"):
            read_objectives((text,))
