"""What answers are worth."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pegboard.errors import ConfigError, DataError
from pegboard.interfaces.reward import Answered
from pegboard.plugins.doors import import_custom
from pegboard_rollouts.config import RewardSection

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

Judge = Callable[[Sequence[Answered]], Sequence[float]]


class Rewards:
    """The rewards of a run, by name, with their weights."""

    def __init__(self, sections: Sequence[RewardSection], registry: Registry) -> None:
        self._judges: dict[str, tuple[Judge, float]] = {}
        for section in sections:
            name = str(section.reward["use"]).rpartition(":")[2]
            while name in self._judges:
                name += "'"
            self._judges[name] = judge_of(section.reward, registry), section.weight

    def __len__(self) -> int:
        return len(self._judges)

    def __call__(self, answers: Sequence[Answered]) -> tuple[list[float], dict[str, list[float]]]:
        """Return the weighted sum for each answer, and each reward by its name.

        Raises DataError for a reward that gives another number of values than there are answers, or one that is not finite.
        """
        parts, totals = {}, [0.0] * len(answers)
        for name, (judge, weight) in self._judges.items():
            values = [float(value) for value in judge(answers)]
            if len(values) != len(answers):
                raise DataError(
                    f"reward {name!r} gave {len(values)} numbers for {len(answers)} answers", fix="return one for each"
                )
            wrong = next((value for value in values if not math.isfinite(value)), None)
            if wrong is not None:
                raise DataError(f"reward {name!r} gave {wrong}", fix="return finite numbers")
            parts[name] = values
            totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
        return totals, parts


def judge_of(choice: Mapping[str, Any], registry: Registry) -> Judge:
    """Return a reward: a plugin's, a user's class, or a user's function with the other keys as its keyword arguments."""
    use = str(choice["use"])
    if registry.is_custom("reward", use):
        target = import_custom("reward", use)
        if not inspect.isclass(target) and callable(target):
            options = {key: value for key, value in choice.items() if key != "use"}
            try:
                inspect.signature(target).bind([], **options)
            except TypeError as error:
                raise ConfigError(
                    f"reward {use}: {error}",
                    fix="its first parameter takes the answers, the keys beside `use` all others",
                ) from error
            return partial(target, **options)
    made: Judge = registry.create("reward", choice)
    return made
