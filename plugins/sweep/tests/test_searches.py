from __future__ import annotations

import itertools
import math

import pytest

from pegboard.errors import ConfigError
from pegboard.interfaces.search import Axis
from pegboard_sweep.searches import Grid, Random

AXES = [Axis("a", ("1", "2")), Axis("b", ("x", "y", "z"))]


def test_a_grid_is_the_product() -> None:
    grid = Grid()
    assert grid.count(AXES, None) == 6
    points = [grid.propose(AXES, number, [], seed=0, maximise=False) for number in range(6)]
    assert [tuple(point.items()) for point in points] == [
        (("a", a), ("b", b)) for a, b in itertools.product("12", "xyz")
    ]
    assert (grid.count(AXES, 4), grid.count(AXES, 9)) == (4, 6)
    with pytest.raises(ConfigError, match="lr is a range"):
        grid.count([Axis("lr", (), 0, 1)], None)


def test_random_points_depend_on_seed_and_number_alone() -> None:
    search = Random()
    axes = [*AXES, Axis("lr", (), 1e-5, 1e-1, log=True)]
    first = [search.propose(axes, number, [], seed=1, maximise=False) for number in range(20)]
    assert first == [search.propose(axes, number, [], seed=1, maximise=False) for number in range(20)]
    assert first != [search.propose(axes, number, [], seed=2, maximise=False) for number in range(20)]
    assert len({point["lr"] for point in first}) == 20
    with pytest.raises(ConfigError, match="never ends"):
        search.count(axes, None)


def drawn(axis: Axis, count: int = 4000) -> list[float]:
    return [float(Random().propose([axis], n, [], seed=0, maximise=False)[axis.key]) for n in range(count)]


def test_ranges_are_even_where_they_should_be() -> None:
    uniform = drawn(Axis("u", (), -2, 6))
    assert -2 <= min(uniform) < -1.9 and 5.9 < max(uniform) <= 6
    assert sum(uniform) / len(uniform) == pytest.approx(2, abs=0.15)
    log = [math.log10(value) for value in drawn(Axis("l", (), 1e-5, 1e-1, log=True))]
    assert min(log) >= -5 and max(log) <= -1
    assert sum(log) / len(log) == pytest.approx(-3, abs=0.08)
    whole = drawn(Axis("i", (), 1, 4, integer=True))
    assert set(whole) == {1, 2, 3, 4}
    assert all(whole.count(value) / len(whole) == pytest.approx(0.25, abs=0.03) for value in (1, 2, 3, 4))
    both = drawn(Axis("li", (), 1, 64, log=True, integer=True))
    assert set(both) <= set(range(1, 65)) and {1, 64} <= set(both)
    # As many below 8 as above, on a logarithmic axis from 0.5 to 64.5.
    expected = math.log(7.5 / 0.5) / math.log(64.5 / 0.5)
    assert sum(value <= 7 for value in both) / len(both) == pytest.approx(expected, abs=0.03)
