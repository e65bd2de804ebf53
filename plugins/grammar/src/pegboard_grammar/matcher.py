"""Where one answer stands in a grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pegboard.interfaces.grammar import CompiledGrammar, GrammarMatcher
from pegboard_grammar.words import refusal

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from pegboard_grammar.vocabulary import Vocabulary


class Compiled(CompiledGrammar):
    """A grammar at its beginning, of which each answer gets a copy. Its expressions are as far built as the first step needs."""

    def __init__(self, start: LLMatcher, vocabulary: Vocabulary, what: str, kind: str) -> None:
        self._start, self._vocabulary, self._what, self._kind = start, vocabulary, what, kind

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning; it shares nothing that changes."""
        return Matcher(self._start.deep_copy(), self._vocabulary, self._what, self._kind)


class Matcher(GrammarMatcher):
    """llguidance's matcher, whose errors become exceptions: every method but `finished` may raise DataError."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, what: str, kind: str) -> None:
        self._matcher, self._vocabulary, self._what, self._kind = matcher, vocabulary, what, kind
        self._accepted = 0
        # Ends are counted here: llguidance takes none where nothing else can follow.
        self._ends = 0
        self._mask: bytes | None = None  # what `finished` had to compute, for the `fill` that follows

    def fill(self, mask: Any) -> None:
        """Write the mask. Raises DataError where the next step would take more work than the limits allow."""
        wanted = len(self._vocabulary.end_only)
        if mask.nbytes != wanted or mask.dtype.kind not in "iu" or not mask.flags["C_CONTIGUOUS"]:
            raise ValueError(
                f"the mask is {mask.dtype}{list(mask.shape)}; give a contiguous row of {wanted // 4} int32 for "
                f"{self._vocabulary.size} ids"
            )
        known = self._vocabulary.end_only if self._ends else self._mask
        if known is None:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, wanted)
            self._check()
        else:
            mask.view("u1").reshape(-1)[:] = memoryview(known)

    def accept(self, token_id: int) -> bool:
        """Advance. An id that ends a text is allowed where the grammar is complete, and nothing but such ids after it."""
        if token_id in self._vocabulary.ends:
            allowed = self._matcher.is_accepting()
            self._check()
            self._ends += allowed
            return allowed
        if self._ends or not 0 <= token_id < self._vocabulary.size:
            return False
        taken = self._matcher.try_consume_tokens([token_id])
        self._check()
        if taken:
            self._accepted += 1
            self._mask = None
        return bool(taken)

    @property
    def finished(self) -> bool:
        """Whether nothing but an end can follow."""
        if self._matcher.is_error():
            return False
        if self._ends or self._matcher.is_stopped():
            return True
        if not self._matcher.is_accepting():
            return False
        if self._mask is None:
            self._mask = self._matcher.compute_bitmask()
        return self._mask == self._vocabulary.end_only

    def rollback(self, count: int) -> None:
        """Take ids back, ids that end a text among them."""
        if not 0 <= count <= self._accepted + self._ends:
            raise ValueError(f"{count} ids are to be taken back of {self._accepted + self._ends} accepted ones")
        ends = min(count, self._ends)
        self._ends -= ends
        if count == ends:
            return
        self._matcher.rollback(count - ends)
        self._check()
        self._accepted -= count - ends
        self._mask = None

    def _check(self) -> None:
        if self._matcher.is_error():
            raise refusal(self._what, self._matcher.get_error(), self._kind)
