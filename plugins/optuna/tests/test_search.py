from __future__ import annotations

from collections.abc import Sequence

import pytest

from pegboard.errors import ConfigError
from pegboard.interfaces.search import Axis, Point, Search, Trial
from pegboard.plugins.load import Registry
from pegboard_optuna.search import STARTUP, OptunaSearch

AXES = [
    Axis("lr", (), 1e-5, 1e-1, log=True),
    Axis("drop", (), 0.0, 1.0),
    Axis("rank", (), 1, 64, log=True, integer=True),
    Axis("layers", (), 2, 9, integer=True),
    Axis("kind", ("[q]", "[q,k]", "all")),
]


def test_it_is_found_by_name_and_needs_a_number_of_samples() -> None:
    search = Registry.discover().create("search", "optuna")
    assert isinstance(search, Search) and search.adaptive
    assert search.count(AXES, 7) == 7
    with pytest.raises(ConfigError, match="never ends"):
        search.count(AXES, None)


def test_points_lie_in_their_ranges_and_depend_on_the_arguments_alone() -> None:
    search = OptunaSearch()
    points = [search.propose(AXES, number, [], seed=3, maximise=False) for number in range(12)]
    assert points == [search.propose(AXES, number, [], seed=3, maximise=False) for number in range(12)]
    assert len({point["lr"] for point in points}) == 12
    for point in points:
        assert list(point) == [axis.key for axis in AXES]
        assert 1e-5 <= float(point["lr"]) <= 1e-1 and 0 <= float(point["drop"]) <= 1
        assert 1 <= int(point["rank"]) <= 64 and 2 <= int(point["layers"]) <= 9
        assert point["kind"] in AXES[-1].values


def loss(point: Point) -> float:
    return (float(point["x"]) - 0.7) ** 2 + {"a": 0.3, "b": 0.0, "c": 0.3}[point["kind"]]


def searched(count: int, *, maximise: bool = False) -> Sequence[Trial]:
    axes = [Axis("x", (), 0.0, 1.0), Axis("kind", ("a", "b", "c"))]
    history: list[Trial] = []
    for number in range(count):
        point = OptunaSearch().propose(axes, number, history, seed=0, maximise=maximise)
        value = -loss(point) if maximise else loss(point)
        # One in eight fails, and one is still running.
        status = "failed" if number % 8 == 5 else "running" if number == 3 else "finished"
        history.append(Trial(number, point, status, value if status == "finished" else None))
    return history


@pytest.mark.parametrize("maximise", [False, True])
def test_later_points_are_better_than_random_ones(maximise: bool) -> None:
    history = searched(STARTUP + 20, maximise=maximise)
    losses = [loss(trial.point) for trial in history]
    early, late = losses[:STARTUP], losses[STARTUP:]
    assert sum(late) / len(late) < 0.6 * sum(early) / len(early)
    assert min(late) < 0.01
    kinds = [trial.point["kind"] for trial in history[STARTUP:]]
    assert kinds.count("b") > max(kinds.count("a"), kinds.count("c"))
