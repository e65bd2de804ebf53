"""Kind `transform`: training rows to token ids and loss masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.types import Example, Row


class Transform(ABC):
    """Turns one raw row into tokenized examples. Constructed with the validated options of its schema.

    What it returns depends on its options, the row and the tokenizer alone: a row is read again when a run is resumed.
    """

    @abstractmethod
    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row | Example]:
        """Return the examples of a row (usually one). Raises DataError naming the field that is missing or wrong.

        An example of several sequences that belong together, such as the two of a preference pair, is a tuple of Rows which name
        their `part`. Every example of a transform has the same parts.
        """

    def complete_batch(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Return the examples of a batch with the sequences that only their neighbours give, such as a prompt with the answer to
        another one. Called when the batch is full: what is added here is not counted against its size.
        """
        return examples
