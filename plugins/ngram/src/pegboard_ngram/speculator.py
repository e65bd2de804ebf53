"""Prompt look-up: what came after the last tokens when they came before, comes again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pegboard.interfaces.speculator import Speculator
from pegboard_ngram.options import Options

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry

AT_ONCE = 8192
"""Places that one step takes in: a long prompt is read over a few steps, so that none of them is held up."""

_ID = 4
"""Bytes of a token id."""


class NgramIndex:
    """Where each run of `low` to `high` tokens of one sequence was seen last, followed by a token.

    It grows with the sequence, so that a step costs the same in a long one as in a short one.
    """

    def __init__(self, low: int, high: int) -> None:
        # Longest first. The bytes of a run are its key: exact, and made without leaving C.
        self._ends: dict[int, dict[bytes, int]] = {length: {} for length in range(high, low - 1, -1)}
        self._known = 0  # runs that end before or at this place are in

    def propose(self, tokens: np.ndarray[Any, np.dtype[np.int32]], most: int) -> list[int]:
        """Return up to `most` ids that came after the latest occurrence of the longest run that `tokens` [L] int32 end with."""
        size = len(tokens)
        self._extend(tokens, size - 1)
        for length, ends in self._ends.items():
            if length < size and (end := ends.get(tokens[size - length :].tobytes())) is not None:
                # A guess that reaches the end of the text goes on with itself, as a loop does.
                return (
                    np.resize(tokens[end:size], most).tolist()
                    if end + most > size
                    else tokens[end : end + most].tolist()
                )
        return []

    def _extend(self, tokens: np.ndarray[Any, np.dtype[np.int32]], last: int) -> None:
        """Take in the runs that end at `last` or before it, the first of them alone where they are many."""
        known = self._known
        last = min(last, known + AT_ONCE)
        if last <= known:
            return
        for length, ends in self._ends.items():
            first = max(known + 1, length)
            if first <= last:
                run = length * _ID
                text = tokens[first - length : last].tobytes()
                ends.update((text[i * _ID : i * _ID + run], first + i) for i in range(last + 1 - first))
        self._known = last


class NgramSpeculator(Speculator):
    """Needs no model. Keeps an index for each sequence until it is told to forget it."""

    def __init__(self, options: Options) -> None:
        self.most = options.most
        self._range = options.min_ngram, options.max_ngram
        self._indices: dict[int, NgramIndex] = {}

    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        """There is nothing to prepare: it suits every model."""

    def propose(self, keys: Sequence[int], tokens: Sequence[Sequence[int]], most: Sequence[int]) -> list[Sequence[int]]:
        """Return the proposals, an empty one where the last tokens never came before or none is wanted."""
        proposals: list[Sequence[int]] = []
        for key, row, wanted in zip(keys, tokens, most, strict=True):
            if wanted < 1:
                proposals.append([])
                continue
            index = self._indices.get(key)
            if index is None:
                index = self._indices[key] = NgramIndex(*self._range)
            proposals.append(index.propose(np.asarray(row, np.int32), min(wanted, self.most)))
        return proposals

    def forget(self, keys: Sequence[int]) -> None:
        """Drop the indices of sequences that ended."""
        for key in keys:
            self._indices.pop(key, None)

    def close(self) -> None:
        """Drop all indices."""
        self._indices.clear()
