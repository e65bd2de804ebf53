"""A reward that is easy to raise, for recipes with rollouts: `rewards=[{use: "pegboard_sdk.toys.rewards:share"}]`."""

from __future__ import annotations

from collections.abc import Sequence

from pegboard.interfaces.reward import Answered


def share(answers: Sequence[Answered], letter: str = "e") -> list[float]:
    """Return how many of a letter each answer has for each of its tokens."""
    return [answer.text.count(letter) / max(len(answer.token_ids), 1) for answer in answers]
