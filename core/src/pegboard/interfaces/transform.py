"""Kind `transform`: training rows to token ids and loss masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.types import Row


class Transform(ABC):
    """Turns one raw row into tokenized examples. Constructed with the validated options of its schema."""

    @abstractmethod
    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return the examples of a row (usually one). Raises DataError naming the field that is missing or wrong."""
