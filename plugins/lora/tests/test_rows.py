from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pegboard_lora.rows import SETS, Arranger, Block, Part, Run

CPU = torch.device("cpu")
# Stretches of equal slots, so that long ones occur as often as alternating rows.
stretches = st.lists(st.tuples(st.integers(-1, 5), st.sampled_from([1, 1, 1, 2, 3, 15, 16, 40])), max_size=12)


def rows_of(parts: list[tuple[int, int]]) -> np.ndarray:
    return np.repeat([slot for slot, _ in parts], [count for _, count in parts]).astype(np.int64)


def covered(parts: list[Part], count: int) -> np.ndarray:
    """Return the slot of which each row gets something, -1 for none; fails where a row gets two."""
    found = np.full(count, -1)
    for part in parts:
        if isinstance(part, Run):
            assert (found[part.start : part.stop] == -1).all()
            found[part.start : part.stop] = part.slot
            continue
        gather, back = part.gather.numpy(), part.back.numpy()
        width = len(gather) // len(part.slots)
        assert width * len(part.slots) == len(gather) and len(back) == part.stop - part.start
        assert gather.max() < len(back) + part.padded
        for row, place in enumerate(back.tolist()):
            if gather[place] == len(back):
                continue  # a row of zeros
            assert gather[place] == row
            assert found[part.start + row] == -1
            found[part.start + row] = part.slots[place // width]
    return found


@given(st.lists(stretches, min_size=1, max_size=5), st.sets(st.integers(0, 5)))
def test_every_row_gets_its_slot_once(batches: list[list[tuple[int, int]]], loaded: set[int]) -> None:
    arranger = Arranger(CPU)
    for batch in batches:
        rows = rows_of(batch)
        wanted = np.where(np.isin(rows, list(loaded)), rows, -1)
        assert covered(arranger.arrange(rows, loaded), len(rows)).tolist() == wanted.tolist()


def test_long_stretches_are_runs_and_the_rest_one_block() -> None:
    rows = rows_of([(0, 1), (1, 1), (-1, 1), (2, 1), (3, 40), (-1, 100), (1, 20)])
    block, first, second = Arranger(CPU).arrange(rows, range(4))
    assert isinstance(block, Block) and block.slots == (0, 1, 2) and (block.start, block.stop) == (0, 4)
    assert (first, second) == (Run(4, 44, 3), Run(144, 164, 1))


def test_one_slot_for_all_is_one_run_and_none_is_nothing() -> None:
    arranger = Arranger(CPU)
    assert arranger.arrange(rows_of([(2, 9)]), {2}) == [Run(0, 9, 2)]
    assert arranger.arrange(rows_of([(-1, 1), (2, 9), (-1, 3)]), {2}) == [Run(1, 10, 2)]
    assert arranger.arrange(rows_of([(-1, 9)]), {2}) == arranger.arrange(rows_of([(2, 9)]), {1}) == []
    assert arranger.arrange(rows_of([]), {1}) == []


def test_a_crowded_slot_does_not_pad_the_others() -> None:
    rows = np.array([0, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0] * 2)
    parts = Arranger(CPU).arrange(rows, range(5))
    assert sorted(part.slots for part in parts if isinstance(part, Block)) == [(0,), (1, 2, 3, 4)]
    places = sum(len(part.gather) for part in parts if isinstance(part, Block))
    assert places <= 1.5 * len(rows)


def test_a_set_of_slots_outlives_a_member_that_pauses() -> None:
    arranger = Arranger(CPU)

    def slots(*rows: int) -> tuple[int, ...]:
        (part,) = arranger.arrange(np.array(rows), range(9))
        assert isinstance(part, Block)
        return part.slots

    assert slots(3, 1, 2, 1, 3) == (1, 2, 3)
    assert slots(1, 2, 1) == (1, 2, 3)
    assert slots(4, 5, 4) == (4, 5)
    assert slots(1, 3, 1) == (1, 2, 3)
    assert slots(1, 3, 4, 1) == (1, 3, 4)
    assert len(arranger._sets) == SETS
    arranger.forget()
    assert slots(1, 3, 1) == (1, 3)
