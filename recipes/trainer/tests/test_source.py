"""The batches of a run, divided over its ranks."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard_trainer.ahead import Ahead
from pegboard_trainer.examples import Key
from pegboard_trainer.packer import Batches, Packer
from pegboard_trainer.source import Packed, take

Make = Callable[..., Batches]


@given(st.lists(st.integers(2, 12), min_size=1, max_size=30), st.sampled_from([1, 2, 3, 4]), st.booleans())
@settings(max_examples=30)
def test_any_number_of_ranks_sees_the_same_batches(batches: Make, lengths: list[int], size: int, ahead: bool) -> None:
    def rank(number: int, size: int) -> Packed:
        made = batches([[length] for length in lengths], Packer(24, window=2), seed=3, epochs=1)
        return Packed(Ahead(made) if ahead else made, number, size)

    def keys(source: Packed, count: int = 1000) -> list[list[Key]]:
        return [found for found, _ in take(source, count)]

    whole = keys(rank(0, 1))
    ranks = [rank(number, size) for number in range(size)]
    rounds = list(zip(*(keys(source) for source in ranks), strict=True))
    seen = [mine for turn in rounds for mine in turn if mine]
    # Where the last round is not full, the ranks without a batch have one that counts for nothing: all take equally many steps.
    assert seen == whole
    assert len(rounds) == -(-len(whole) // size)
    assert len({str(source.state()) for source in ranks}) == 1


def test_a_position_is_continued_by_another_number_of_ranks(batches: Make) -> None:
    def rank(number: int, size: int) -> Packed:
        return Packed(batches([[n % 7 + 2] for n in range(60)], Packer(20, window=3), epochs=1), number, size)

    whole = [keys for keys, _ in take(rank(0, 1), 1000)]
    four = [rank(number, 4) for number in range(4)]
    for source in four:
        take(source, 2)
    two = [rank(number, 2) for number in range(2)]
    for source in two:
        source.restore(four[3].state(), {})
    rounds = zip(*([keys for keys, _ in take(source, 1000)] for source in two), strict=True)
    assert [mine for turn in rounds for mine in turn if mine] == whole[8:]
