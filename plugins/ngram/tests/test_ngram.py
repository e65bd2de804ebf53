"""Proposals against a search of the whole text, and how an index grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard_ngram.options import Options
from pegboard_ngram.plugin import SPEC
from pegboard_ngram.speculator import AT_ONCE, NgramIndex, NgramSpeculator
from pegboard_sdk.conformance import PluginSuite

texts = st.lists(st.integers(0, 3), max_size=40)
few = settings(deadline=None)


class TestFrontDoor(PluginSuite):
    spec = SPEC


def searched(text: list[int], low: int, high: int, most: int) -> list[int]:
    """Return what a search from the longest run to the shortest, and from the end to the beginning, finds."""
    for length in range(high, low - 1, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if length < len(text) and text[end - length : end] == text[-length:]:
                found = list(text)
                for i in range(most):
                    found.append(found[end + i])
                return found[len(text) :]
    return []


def row(text: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(text, np.int32)


@few
@given(texts, st.integers(1, 4), st.integers(0, 3), st.integers(1, 6))
def test_a_proposal_is_what_a_search_finds(text: list[int], low: int, more: int, most: int) -> None:
    assert NgramIndex(low, low + more).propose(row(text), most) == searched(text, low, low + more, most)


@few
@given(texts, st.lists(texts, max_size=8), st.integers(1, 3), st.integers(0, 2))
def test_an_index_that_grew_is_one_that_was_made_at_once(
    text: list[int], parts: list[list[int]], low: int, more: int
) -> None:
    index = NgramIndex(low, low + more)
    for part in [[], *parts]:
        text = text + part
        assert index.propose(row(text), 4) == searched(text, low, low + more, 4)


def test_the_longest_run_counts_and_among_those_the_latest() -> None:
    text = [1, 2, 3, 7, 0, 1, 2, 3, 8, 0, 9, 2, 3, 9, 0, 1, 2, 3]
    assert NgramIndex(1, 4).propose(row(text), 2) == [8, 0]
    assert NgramIndex(1, 2).propose(row(text), 1) == [9]


def test_a_loop_goes_on() -> None:
    assert NgramIndex(2, 4).propose(row([5, 1, 2, 1, 2, 1, 2]), 5) == [1, 2, 1, 2, 1]


def test_ids_are_not_taken_apart() -> None:
    """Bytes that agree across the borders of ids are no match."""
    text = [0x01000000, 0x00000002, 5, 0x00010000, 0x00000200, 6, 0x01000000, 0x00000200]
    assert NgramIndex(1, 4).propose(row(text[:5]), 1) == []
    assert NgramIndex(2, 2).propose(row(text), 1) == []


def speculator(**options: int) -> NgramSpeculator:
    return NgramSpeculator(Options(**options))


def test_sequences_are_apart_and_have_their_own_bounds() -> None:
    made = speculator(most=3)
    same, other = row([1, 2, 3, 4, 1, 2]), row([1, 2, 9, 9, 1, 2])
    assert made.propose([7, 8, 9, 10], [same, other, same, row([1])], [3, 2, 0, 3]) == [[3, 4, 1], [9, 9], [], []]
    assert made.propose([8], [np.append(other, [9]).astype(np.int32)], [10]) == [[9, 1, 2]]


def test_what_ended_is_forgotten() -> None:
    made = speculator()
    rows = [row([1, 2, 1, 2])] * 3
    made.propose([1, 2, 3], rows, [1, 1, 1])
    assert set(made._indices) == {1, 2, 3}
    made.forget([2, 99])
    assert set(made._indices) == {1, 3}
    made.close()
    made.close()
    assert not made._indices


def test_a_row_that_may_not_be_written_is_read() -> None:
    fixed = row([1, 2, 3, 1, 2])
    fixed.flags.writeable = False
    assert speculator().propose([1], [fixed], [1]) == [[3]]


def test_only_new_tokens_are_taken_in() -> None:
    """A step in a long text does no more than in a short one: what it takes in is what is new."""
    index, taken = NgramIndex(2, 4), []

    class Counted(dict[bytes, int]):
        def update(self, entries: Any) -> None:  # type: ignore[override]
            new = dict(entries)
            taken.append(len(new))
            super().update(new)

    index._ends = {length: Counted() for length in index._ends}
    text = np.random.default_rng(0).integers(0, 50_000, 32_000).astype(np.int32)
    for _ in range(4):  # a long prompt is read over several steps
        index.propose(text[:31_990], 5)
    assert max(taken) <= AT_ONCE and sum(taken) == 3 * 31_989 - (1 + 2 + 3)
    taken.clear()
    index.propose(text[:31_992], 5)
    assert taken == [2, 2, 2]


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_ngram is 3, more than max_ngram"):
        Registry.discover().create("speculator", {"use": "ngram", "min_ngram": 3, "max_ngram": 2})
