"""Kind `transform`: training rows to token ids and loss masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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

    def complete(self, example: Example, neighbours: Iterable[Example]) -> Sequence[Example]:
        """Return further sequences of an example, which its neighbours give: its prompt with the answer to another one, say.

        neighbours: in the order of the data, those before it first, the nearest one first, then at an epoch's beginning those behind.
        What is returned lies behind the batch that the example is in, and is not counted against its size.
        """
        return ()
