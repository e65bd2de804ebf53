"""Kind `reward`: how good an answer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with an answer that a model gave.

    prompt, text: as texts, without special tokens. token_ids: of the answer, the token that ended it included. finished: whether it
    came to its end, instead of being cut at the longest length. columns: the other columns of the prompt's row, a solution say.
    """

    prompt: str
    text: str
    token_ids: Sequence[int] = ()
    finished: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)


class Reward(ABC):
    """Constructed with the validated options of its schema. In place of a class, a config may name a function of the answers and
    of options by keyword: `use: module:function`.
    """

    @abstractmethod
    def __call__(self, answers: Sequence[Answered]) -> Sequence[float]:
        """Return a finite number for each answer, in their order; more is better. Raises DataError naming a column that is missing."""
