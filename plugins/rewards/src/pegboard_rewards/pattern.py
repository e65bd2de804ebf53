"""Form: whether an answer matches a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pegboard.interfaces.reward import Answered, Reward
from pegboard_rewards.options import PatternOptions


class Pattern(Reward):
    """1 for an answer that matches, else 0."""

    def __init__(self, options: PatternOptions) -> None:
        pattern = re.compile(options.pattern, re.DOTALL)
        self._match = pattern.fullmatch if options.whole else pattern.search

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 0 or 1 for each."""
        return [float(self._match(answer.text) is not None) for answer in answers]
