"""The searches that need to know nothing of how runs went: all combinations, and random ones."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from pegboard.errors import ConfigError
from pegboard.interfaces.search import Axis, Point, Search, Trial


class Grid(Search):
    """Every combination of values, the last key changing fastest."""

    def count(self, axes: Sequence[Axis], samples: int | None) -> int:
        """Return the number of combinations, or the first `samples` of them."""
        ranges = [axis.key for axis in axes if not axis.values]
        if ranges:
            raise ConfigError(
                f"a grid has values, {', '.join(ranges)} is a range",
                fix="write values (key=a,b,c), or say --samples N for random numbers",
            )
        total = math.prod(len(axis.values) for axis in axes)
        return total if samples is None else min(samples, total)

    def propose(
        self, axes: Sequence[Axis], number: int, history: Sequence[Trial], *, seed: int, maximise: bool
    ) -> Point:
        """Return combination `number`."""
        point: dict[str, str] = {}
        for axis in reversed(axes):
            number, place = divmod(number, len(axis.values))
            point[axis.key] = axis.values[place]
        return {axis.key: point[axis.key] for axis in axes}


class Random(Search):
    """Independent draws; each depends on the seed and its number alone."""

    def count(self, axes: Sequence[Axis], samples: int | None) -> int:
        """Return `samples`, which must be given."""
        return needs_samples("random", samples)

    def propose(
        self, axes: Sequence[Axis], number: int, history: Sequence[Trial], *, seed: int, maximise: bool
    ) -> Point:
        """Draw a value for each axis."""
        draw = random.Random(f"{seed}/{number}")
        return {axis.key: _drawn(axis, draw) for axis in axes}


def needs_samples(name: str, samples: int | None) -> int:
    """Return the number of samples. Raises ConfigError where it was not given."""
    if samples is None:
        raise ConfigError(f"the search {name} never ends by itself", fix="say how many runs: --samples N")
    return samples


def written(axis: Axis, value: float) -> str:
    """Return a number as an override has it: whole, or with six digits, which still lie within the range."""
    if axis.integer:
        return str(min(max(round(value), int(axis.low)), int(axis.high)))
    return f"{min(max(float(f'{value:.6g}'), axis.low), axis.high):.12g}"


def _drawn(axis: Axis, draw: random.Random) -> str:
    if axis.values:
        return draw.choice(axis.values)
    if axis.integer and not axis.log:
        return str(draw.randint(int(axis.low), int(axis.high)))
    if not axis.log:
        return written(axis, draw.uniform(axis.low, axis.high))
    # Whole numbers stand for half a unit on both sides, so that the ends are as likely as their neighbours.
    margin = 0.5 if axis.integer else 0.0
    return written(axis, math.exp(draw.uniform(math.log(axis.low - margin), math.log(axis.high + margin))))
