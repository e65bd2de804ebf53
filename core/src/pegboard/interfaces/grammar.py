"""Kind `grammar`: outputs that must match a schema, an expression or a grammar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.types import GrammarSpec


class GrammarMatcher(ABC):
    """How far one answer has come in a grammar. Used by one thread at a time.

    `fill`, `accept` and `rollback` raise DataError where the grammar takes more work than its limits allow, and then always.
    """

    @abstractmethod
    def fill(self, mask: Any) -> None:
        """Write which ids may come next into `mask`, a numpy row of ceil(V / 32) int32: bit i % 32 of word i // 32 is id i.

        Once the grammar is complete and can go no further, only the ids that end a text are allowed.
        """

    @abstractmethod
    def accept(self, token_id: int) -> bool:
        """Advance by one id and return True; leave the state as it is and return False when the grammar does not allow it.

        An id that ends a text is accepted where the grammar is complete; after it nothing but such ids is.
        """

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the grammar is complete and nothing but an end can follow."""

    @abstractmethod
    def rollback(self, count: int) -> None:
        """Take the last `count` accepted ids back."""


class CompiledGrammar(ABC):
    """A grammar for one tokenizer, shared by the requests that ask for it."""

    @abstractmethod
    def matcher(self) -> GrammarMatcher:
        """Return a matcher at the beginning."""


class GrammarBackend(ABC):
    """Compiles grammars. Constructed with the validated options of its schema."""

    @abstractmethod
    def load(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Prepare for a tokenizer; called once, first. vocab_size: width of the logits, perhaps more than the tokenizer has ids."""

    @abstractmethod
    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile. Called off the step thread, from several threads at once. Raises DataError, in words for the person who wrote
        the grammar, when it is wrong or exceeds the limits on size or time.
        """
