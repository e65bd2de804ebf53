from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pegboard_engine.alone import MOST, alone


@pytest.fixture
def three() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_few_values_are_the_calling_threads(three: int) -> None:
    with alone(torch.empty(1, MOST)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == three


def test_many_values_are_all_threads(three: int) -> None:
    with alone(torch.empty(1, MOST + 1)):
        assert torch.get_num_threads() == three


def test_values_of_a_device_change_nothing(three: int) -> None:
    with alone(torch.empty(1, 8, device="meta")):
        assert torch.get_num_threads() == three


def test_threads_come_back_after_an_error(three: int) -> None:
    with pytest.raises(ZeroDivisionError), alone(torch.empty(1, 8)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == three
