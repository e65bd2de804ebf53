from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import DataError
from pegboard_trainer.ahead import Ahead
from pegboard_trainer.packer import Batches, Bin, Packer

Make = Callable[..., Batches]


def all_of(batches: Ahead | Batches) -> Iterator[Bin]:
    try:
        while True:
            yield batches.next_bin()
    except StopIteration:
        return


def makers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "batches"}


@given(st.lists(st.integers(2, 12), min_size=1, max_size=20), st.integers(0, 12), st.integers(1, 4))
@settings(max_examples=25)
def test_batches_and_positions_are_those_of_making_them_when_asked(
    batches: Make, lengths: list[int], taken: int, depth: int
) -> None:
    def fresh() -> Batches:
        return batches([[length] for length in lengths], Packer(24, window=2), epochs=2)

    plain, ahead = fresh(), Ahead(fresh(), depth)
    whole = list(all_of(fresh()))
    taken = min(taken, len(whole))
    for expected in whole[:taken]:
        assert ahead.next_bin().keys == plain.next_bin().keys == expected.keys
        assert ahead.state() == plain.state()
        assert ahead.counts == plain.counts
    state = json.loads(json.dumps(ahead.state()))
    rest = list(all_of(ahead))
    assert [bin.keys for bin in rest] == [bin.keys for bin in whole[taken:]]
    # Both a new one and the one that ran to its end continue from there.
    for again in (Ahead(fresh(), depth), ahead):
        again.restore(state)
        assert again.state() == state
        assert [bin.keys for bin in all_of(again)] == [bin.keys for bin in whole[taken:]]
    assert ahead.at(whole[0].keys[0]) == whole[0].examples[0]
    assert ahead.describe((0, 0, 0)) == plain.describe((0, 0, 0))


def test_what_went_wrong_is_raised_in_its_turn(batches: Make) -> None:
    ahead = Ahead(batches([[5], [5], [-1]], Packer(5, window=1), shuffle=False), depth=3)
    assert [ahead.next_bin().keys for _ in range(2)] == [[(0, 0, 0)], [(0, 1, 0)]]
    for _ in range(2):
        with pytest.raises(DataError, match="row 2: a negative length"):
            ahead.next_bin()


def test_the_thread_ends_with_its_owner(batches: Make) -> None:
    others = makers()
    ahead = Ahead(batches([[5]] * 100, Packer(5, window=1)))
    ahead.next_bin()
    assert len(makers() - others) == 1
    ahead.restore(ahead.state())
    assert makers() <= others
    ahead.next_bin()
    del ahead
    gc.collect()
    assert makers() <= others


def test_the_thread_waits_until_the_device_is_busy(batches: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegboard_trainer.ahead.PAUSE", 6000.0)
    plain = batches([[5]] * 8, Packer(5, window=1), epochs=1)
    reads = threading.Semaphore(0)
    real = plain.next_bin

    def counted() -> Bin:
        reads.release()
        return real()

    plain.next_bin = counted  # type: ignore[method-assign]
    ahead = Ahead(plain, depth=2)
    ahead.next_bin()
    ahead.prepare()
    assert all(reads.acquire() for _ in range(4))  # one taken, two that wait, one in hand
    ahead.next_bin()
    assert not reads.acquire(timeout=0.2)
    ahead.prepare()
    assert reads.acquire()
    assert len(list(all_of(ahead))) == 6  # and whoever finds none waits for no permission


def test_tensors_are_made_ahead_where_they_are_asked_for(batches: Make) -> None:
    plain = batches([[5], [3]], Packer(5, window=1), shuffle=False)
    real, threads = plain.collated, []

    def noted(bin: Bin) -> object:
        threads.append(threading.current_thread().name)
        return real(bin)

    plain.collated = noted  # type: ignore[method-assign, assignment]
    ahead = Ahead(plain, collate=True)
    for length in (5, 3):
        keys, batch = ahead.collated(ahead.next_bin())
        assert len(keys) == 1 and batch.seq_lens == [length]
    assert set(threads) == {"batches"}
