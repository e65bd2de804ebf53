"""Right or wrong, by the final answer of a worked solution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from pegboard.errors import DataError
from pegboard.interfaces.reward import Answered, Reward
from pegboard_rewards.options import ExactOptions

NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


class ExactAnswer(Reward):
    """1 for an answer whose end is that of the row's solution, else 0.

    Both ends stand behind the last mark, as far as its line goes; a solution without the mark is an end as a whole. Numbers are
    compared as numbers, commas, dollar signs and a last dot aside; anything else as text, spaces at both ends and case aside.
    """

    def __init__(self, options: ExactOptions) -> None:
        self._options = options

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 0 or 1 for each. Raises DataError for a row without a solution."""
        return [float(self._right(answer)) for answer in answers]

    def _right(self, answer: Answered) -> bool:
        options = self._options
        solution = answer.columns.get(options.column)
        if not isinstance(solution, (str, int, float)):
            raise DataError(
                f"a row has no solution: its column {options.column!r} is {solution!r}, expected a text or a number",
                fix="name the column with the reward's option `column`",
            )
        wanted = self._end(str(solution))
        wanted = str(solution).strip() if wanted is None else wanted
        said = self._end(answer.text)
        if said is None and options.flexible:
            said = next(iter(NUMBER.findall(answer.text)[-1:]), None) if _number(wanted) is not None else answer.text
        if said is None:
            return False
        if (number := _number(wanted)) is not None:
            return _number(said) == number
        return said.strip().rstrip(".").casefold() == wanted.rstrip(".").casefold()

    def _end(self, text: str) -> str | None:
        """Return what stands behind the last mark, None without one."""
        _, mark, rest = text.rpartition(self._options.mark)
        return rest.strip().partition("\n")[0].strip() if mark else None


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.replace(",", "").replace("$", "").strip().rstrip("."))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
