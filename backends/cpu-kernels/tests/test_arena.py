"""Memory of recorded programs: used again when tensors are gone, never before."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pegboard_cpu_kernels.arena import Arena


def test_memory_is_used_again_when_the_last_view_is_gone() -> None:
    arena = Arena()
    first = arena.empty((4, 8), torch.float32)
    address, view = first.data_ptr(), first[1:, :3]
    assert address % 64 == 0
    del first
    assert arena.empty((4, 8), torch.float32).data_ptr() != address or view is None
    assert arena.owns(view)
    del view
    assert arena.empty((2, 8), torch.bfloat16).data_ptr() != 0
    held = [arena.empty((4, 8), torch.float32) for _ in range(2)]
    assert address in {tensor.data_ptr() for tensor in held}
    assert arena.num_bytes == 2 * 128


def test_only_its_own_tensors_are_owned() -> None:
    arena = Arena()
    assert not arena.owns(torch.empty(3))
    assert not arena.owns(arena.empty((0, 3), torch.float32))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 300)), max_size=60))
def test_what_is_held_never_changes(steps: list[tuple[int, int]]) -> None:
    arena = Arena()
    held: list[tuple[Tensor, int]] = []
    for number, (drop, size) in enumerate(steps):
        if drop < len(held):
            held.pop(drop)
        tensor = arena.empty((size,), torch.int32).fill_(number)
        held.append((tensor, number))
        assert all(bool((one == value).all()) for one, value in held)
