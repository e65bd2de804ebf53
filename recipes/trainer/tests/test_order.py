from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.errors import ConfigError, DataError
from pegboard_trainer.order import CYCLE, Orders, epoch_order, split_rows, spread


@given(st.integers(1, 60), st.integers(0, 5), st.integers(0, 2**31))
def test_an_epoch_is_a_permutation_that_its_number_and_the_seed_decide(count: int, epoch: int, seed: int) -> None:
    indices = torch.arange(count)
    order = epoch_order(indices, epoch, seed, shuffle=True)
    assert sorted(order.tolist()) == indices.tolist()
    assert order.equal(epoch_order(indices, epoch, seed, shuffle=True))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    indices = torch.arange(50)
    orders = [
        tuple(epoch_order(indices, epoch, seed, shuffle=True).tolist())
        for epoch, seed in [(0, 0), (1, 0), (0, 1), (2, 5)]
    ]
    assert len(set(orders)) == 4
    assert epoch_order(indices, 3, 9, shuffle=False).equal(indices)


@pytest.mark.parametrize(("held_out", "size"), [(0.25, 5), (3.0, 3)])
def test_the_split_is_disjoint_and_complete(held_out: float, size: int) -> None:
    train, held = split_rows(20, held_out, seed=1)
    assert len(held) == size
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(20))
    assert not split_rows(20, held_out, seed=2)[1].equal(held)


@pytest.mark.parametrize("held_out", [0.0, 0.01, 20.0, 25.0])
def test_a_split_that_leaves_a_part_empty_is_refused(held_out: float) -> None:
    with pytest.raises(DataError, match=r"data\.validation=.* of 20 rows leaves one part empty"):
        split_rows(20, held_out, seed=1)


@given(st.integers(1, 20), st.lists(st.integers(0, 70), min_size=1, max_size=8))
def test_places_are_those_of_the_epochs_one_after_the_other(count: int, places: list[int]) -> None:
    orders = Orders(torch.arange(count) + 100, 3, shuffle=True)
    for taken in places:
        epoch, position = divmod(taken, count)
        assert orders.at(taken) == epoch_order(torch.arange(count) + 100, epoch, 3, shuffle=True)[position]


@pytest.mark.parametrize(
    ("weights", "slots"),
    [([1], [0]), ([2.0, 1.0], [0, 1, 0]), ([1, 1], [0, 1]), ([0.25, 0.75], [1, 0, 1, 1]), ([3, 3, 3], [0, 1, 2])],
)
def test_turns_are_as_far_apart_as_possible(weights: list[float], slots: list[int]) -> None:
    assert spread(weights) == slots


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_every_weight_gets_its_share(weights: list[float]) -> None:
    slots = spread(weights)
    for part, weight in enumerate(weights):
        wanted = weight / sum(weights)
        assert abs(slots.count(part) - wanted * len(slots)) <= 1
        # No beginning of the cycle is far from the share either.
        assert all(abs(slots[:at].count(part) - wanted * at) <= len(weights) for at in range(0, len(slots), 37))
    assert len(slots) <= CYCLE


@pytest.mark.parametrize("weights", [[1, 0], [-1, 2], [1e-4, 1]])
def test_weights_without_a_turn_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"the weights of data\.mix are"):
        spread(weights)
