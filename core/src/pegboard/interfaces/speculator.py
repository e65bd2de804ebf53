"""Kind `speculator`: guesses at the next tokens, which the model then checks together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry


class Speculator(ABC):
    """Proposes tokens. Constructed with the validated options of its schema. A proposal is a certain guess (a point mass): the engine
    accepts it with the probability that the model gives it, so that the distribution of the output is the model's own.

    most: longest proposal. The engine reserves room for that many tokens.
    """

    most: int

    @abstractmethod
    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        """Prepare for a model; called once, first. Raises ConfigError when this speculator does not suit it."""

    @abstractmethod
    def propose(self, keys: Sequence[int], tokens: Sequence[Sequence[int]], most: Sequence[int]) -> list[Sequence[int]]:
        """Return a proposal for each sequence, of at most most[i] ids; an empty one where there is no good guess.

        keys: names of the sequences; a key never stands for another one. tokens: prompt and output of each so far, as an int32
        numpy row; read only, and from one call to the next only longer.
        """

    def forget(self, keys: Sequence[int]) -> None:
        """Say that these sequences ended. Unknown keys are ignored."""
        return

    def close(self) -> None:
        """Free what is held. Safe to call twice."""
        return
