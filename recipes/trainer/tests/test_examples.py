from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.errors import DataError
from pegboard.interfaces.transform import Transform
from pegboard.types import Example, Row
from pegboard_trainer.examples import Counts, Examples, Key, Limits, fit

Make = Callable[..., Examples]


def rows_of(examples: Examples, count: int | None = None) -> list[int]:
    return [row.input_ids[0] // 1000 for _, (row,) in islice(examples, count)]


def test_a_row_may_give_several_examples_and_none(examples: Make) -> None:
    made = list(examples([[3, 2], [], [4]], shuffle=False, epochs=1))
    assert [key for key, _ in made] == [(0, 0, 0), (0, 0, 1), (0, 2, 0)]
    assert [row.input_ids for _, (row,) in made] == [[0] * 3, [1] * 2, [2000] * 4]


def test_without_a_number_of_epochs_the_data_begins_again(examples: Make) -> None:
    assert rows_of(examples([[2], [2], [2]], shuffle=False), 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert rows_of(examples([[2], [2]], streamed=True), 5) == [0, 1, 0, 1, 0]


def test_part_of_an_epoch(examples: Make) -> None:
    assert len(rows_of(examples([[2]] * 10, epochs=1.5))) == 15
    assert len(rows_of(examples([[2]] * 10, epochs=0.3))) == 3
    assert len(rows_of(examples([[2]], epochs=1.3))) == 1


@given(
    lengths=st.lists(st.lists(st.integers(2, 5), max_size=3), min_size=1, max_size=8).filter(any),
    taken=st.integers(0, 30),
    streamed=st.booleans(),
)
def test_setting_the_next_key_continues(examples: Make, lengths: list[list[int]], taken: int, streamed: bool) -> None:
    whole = list(islice(examples(lengths, seed=3, streamed=streamed), taken + 12))
    first = examples(lengths, seed=3, streamed=streamed)
    assert list(islice(first, taken)) == whole[:taken]
    second = examples(lengths, seed=3, streamed=streamed)
    second.next_key = first.next_key
    assert list(islice(second, 12)) == whole[taken:]
    for key, example in whole:
        assert second.at(key) == example


def test_longer_examples_are_cut_dropped_or_refused(examples: Make) -> None:
    cut = examples([[5], [9]], shuffle=False, epochs=1, limits=Limits(6, "truncate"))
    assert [len(row.input_ids) for _, (row,) in cut] == [5, 6]
    assert cut.counts.line() == "2 examples, 11 tokens, 1 cut to length, 0 left out"
    dropped = examples([[5], [9]], shuffle=False, epochs=1, limits=Limits(6, "drop"))
    assert [len(row.input_ids) for _, (row,) in dropped] == [5]
    assert dropped.counts.dropped == 1
    with pytest.raises(DataError, match=r"row 1: 9 tokens, batch\.length is 6"):
        list(examples([[5], [9]], shuffle=False, epochs=1, limits=Limits(6, "error")))


def test_an_example_without_anything_to_learn_is_left_out(examples: Make) -> None:
    made = examples([[1], [3]], shuffle=False, epochs=1)
    assert rows_of(made) == [1]
    assert made.counts.dropped == 1


def test_sequences_of_an_example_are_kept_or_left_out_together() -> None:
    def pair(*lengths: int) -> tuple[Row, ...]:
        return tuple(Row([1] * n, [True] * n, {}, "x", {"logp": [0.5] * n}) for n in lengths)

    counts = Counts()
    cut = fit(pair(3, 9), Limits(6), counts)
    assert cut is not None
    assert [(len(row.input_ids), len(row.mask), len(row.per_token["logp"])) for row in cut] == [(3, 3, 3), (6, 6, 6)]
    assert [row.part for row in cut] == ["x", "x"]
    assert fit(pair(3, 9), Limits(6, "drop"), counts) is None
    assert fit(pair(3, 1), Limits(6), counts) is None
    assert (counts.examples, counts.tokens, counts.truncated, counts.dropped) == (1, 9, 1, 2)
    with pytest.raises(DataError, match=r"an example of 2 sequences does not fit into a batch of batch\.size=1"):
        fit(pair(2, 2), Limits(6, sequences=1), counts)


def test_prompts_have_nothing_to_learn_and_are_never_cut() -> None:
    counts = Counts()
    short, long = (Row([1] * n, [False] * n, {}, "prompt") for n in (6, 7))
    assert fit((short,), Limits(6), counts) == (short,)
    assert fit((long,), Limits(6), counts) is None
    with pytest.raises(DataError, match="7 tokens"):
        fit((long,), Limits(6, "error"), counts)
    assert (counts.examples, counts.truncated, counts.dropped) == (1, 0, 1)


def test_data_of_which_nothing_can_be_used_is_an_error(examples: Make) -> None:
    with pytest.raises(DataError, match=r"no row of the data can be used: 0 examples.* 2 left out"):
        list(examples([[1], [1]]))


def test_a_bad_row_is_named(examples: Make) -> None:
    with pytest.raises(DataError, match="row 1: a negative length") as caught:
        list(examples([[2], [-1]], shuffle=False, epochs=1))
    assert caught.value.fix == "count again"


def test_a_key_leads_back_to_the_row_in_its_file(examples: Make) -> None:
    made = examples([[2]] * 9, seed=4, epochs=2)
    for key, (row,) in made:
        assert made.describe(key) == f"row {row.input_ids[0] // 1000}"


def neighbours(examples: Examples, key: Key, example: Example) -> list[int]:
    (((row,),)) = examples.added(key, example)
    return row.input_ids


def test_neighbours_before_an_example_come_first_and_the_nearest_of_them(
    examples: Make, neighboured: Transform
) -> None:
    made = examples([[3, 2], [], [4]] + [[2]] * 12, shuffle=False, epochs=1, transform=neighboured)
    found = {key: neighbours(made, key, example) for key, example in made}
    assert found[0, 0, 1][:4] == [0, 2000, 3000, 4000]
    assert found[0, 2, 0][:4] == [1, 0, 3000, 4000]
    assert found[0, 9, 0] == [1000 * row for row in range(8, 1, -1)]
    assert found[0, 14, 0] == [1000 * row for row in range(13, 5, -1)]
    assert neighbours(examples([[2]], transform=neighboured), (0, 0, 0), (Row([0, 0], [True] * 2),)) == []


@given(
    lengths=st.lists(st.lists(st.integers(2, 5), max_size=3), min_size=1, max_size=12).filter(any),
    streamed=st.booleans(),
)
def test_neighbours_are_the_same_whatever_was_read_before(
    examples: Make, neighboured: Transform, lengths: list[list[int]], streamed: bool
) -> None:
    options = {"seed": 3, "streamed": streamed, "transform": neighboured}
    whole = examples(lengths, **options)
    for key, example in list(islice(whole, 20)):
        fresh = examples(lengths, **options)
        assert neighbours(fresh, key, example) == neighbours(whole, key, example)
