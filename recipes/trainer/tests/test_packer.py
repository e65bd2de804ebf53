from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.types import Row
from pegboard_trainer.packer import Batches, Bin, Packer, size_of

Make = Callable[..., Batches]
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=40)
PACKERS = st.builds(Packer, capacity=st.integers(12, 30), limit=st.none() | st.integers(1, 4), window=st.integers(1, 4))


def bins_of(batches: Batches) -> list[Bin]:
    found = []
    try:
        while True:
            found.append(batches.next_bin())
    except StopIteration:
        return found


def packed(lengths: list[int], packer: Packer) -> list[Bin]:
    found = []
    for number, length in enumerate(lengths):
        closed = packer.add((0, number, 0), (Row([number] * length, [True] * length),))
        found += [closed] if closed is not None else []
    while (last := packer.flush()) is not None:
        found.append(last)
    return found


@given(LENGTHS, PACKERS)
def test_every_example_is_in_exactly_one_batch_that_holds_it_whole(lengths: list[int], packer: Packer) -> None:
    found = packed(lengths, packer)
    keys = [key for bin in found for key in bin.keys]
    assert sorted(keys) == [(0, number, 0) for number in range(len(lengths))]
    for bin in found:
        assert bin.tokens == sum(size_of(example) for example in bin.examples) <= packer.capacity
        assert packer.limit is None or bin.sequences == len(bin.examples) <= packer.limit
        assert [lengths[key[1]] for key in bin.keys] == [size_of(example) for example in bin.examples]


@given(LENGTHS, PACKERS)
def test_the_order_depends_on_the_examples_alone(lengths: list[int], packer: Packer) -> None:
    again = Packer(packer.capacity, packer.limit, packer.window)
    assert [bin.keys for bin in packed(lengths, packer)] == [bin.keys for bin in packed(lengths, again)]
    assert packer.open == []


def test_the_first_open_batch_with_room_is_filled() -> None:
    # 7 opens a, 6 opens b (7 + 6 > 10), 3 fills a, 4 fills b, 5 opens c.
    assert [bin.keys for bin in packed([7, 6, 3, 4, 5], Packer(10, window=2))] == [
        [(0, 0, 0), (0, 2, 0)],
        [(0, 1, 0), (0, 3, 0)],
        [(0, 4, 0)],
    ]


def test_without_packing_a_batch_is_the_next_examples() -> None:
    found = packed([3, 9, 2, 5, 4], Packer(2 * 10, limit=2, window=1))
    assert [[key[1] for key in bin.keys] for bin in found] == [[0, 1], [2, 3], [4]]


def test_an_example_that_no_batch_can_hold_is_a_defect() -> None:
    with pytest.raises(ValueError, match="11 tokens in 1 sequences does not fit into a batch of 10"):
        Packer(10).add((0, 0, 0), (Row([1] * 11, [True] * 11),))


@given(
    rows=st.lists(LENGTHS, min_size=1, max_size=6),
    taken=st.integers(0, 12),
    window=st.integers(1, 3),
)
def test_a_restored_position_continues_with_the_next_batch(
    batches: Make, rows: list[list[int]], taken: int, window: int
) -> None:
    def fresh() -> Batches:
        return batches(rows, Packer(24, window=window), seed=5, epochs=2)

    whole = [bin.keys for bin in bins_of(fresh())]
    first = fresh()
    taken = min(taken, len(whole))
    assert [first.next_bin().keys for _ in range(taken)] == whole[:taken]
    state = json.loads(json.dumps(first.state()))
    second = fresh()
    second.restore(state)
    rest = bins_of(second)
    assert [bin.keys for bin in rest] == whole[taken:]
    assert second.examples.counts.examples == sum(len(keys) for keys in whole)
    again = bins_of(first)
    assert [bin.examples for bin in again] == [bin.examples for bin in rest]


def test_an_example_of_several_sequences_lies_in_one_batch() -> None:
    packer = Packer(20, limit=4, window=2)
    pair = (Row([1] * 4, [True] * 4), Row([2] * 4, [True] * 4))
    single = (Row([3] * 4, [True] * 4),)
    closed = [packer.add((0, number, 0), e) for number, e in enumerate([pair, single, pair, pair, single])]
    # Three sequences and a pair would be five: the second pair opens another batch.
    assert closed[:3] == [None] * 3
    assert [bin.keys if bin else None for bin in closed[3:]] == [
        [(0, 2, 0), (0, 3, 0)],
        [(0, 0, 0), (0, 1, 0), (0, 4, 0)],
    ]
