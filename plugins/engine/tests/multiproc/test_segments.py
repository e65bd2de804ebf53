from __future__ import annotations

import gc
import os
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pegboard_engine.multiproc.segments import ALIGN, Ring, Segment, aligned, create

CAPACITY = 1024


class RingMachine(RuleBasedStateMachine):
    """Blocks never overlap, and there is room whenever a gap behind the newest or before the oldest is large enough."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(CAPACITY)
        self.blocks: deque[tuple[int, int]] = deque()

    @rule(size=st.integers(1, 10).map(lambda lines: lines * ALIGN))
    def take(self, size: int) -> None:
        place = self.ring.take(size)
        if place is None:
            assert self.blocks
            oldest, (start, newest) = self.blocks[0][0], self.blocks[-1]
            gaps = [oldest - newest] if start < oldest else [CAPACITY - newest, oldest]
            assert max(gaps) < size
            return
        assert 0 <= place and place + size <= CAPACITY
        assert all(place + size <= start or stop <= place for start, stop in self.blocks)
        self.blocks.append((place, place + size))

    @precondition(lambda self: self.blocks)
    @rule()
    def release(self) -> None:
        self.ring.release(1)
        self.blocks.popleft()

    @invariant()
    def counts(self) -> None:
        assert len(self.ring) == len(self.blocks)


RingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRing = RingMachine.TestCase


def test_a_block_that_fills_the_ring() -> None:
    ring = Ring(CAPACITY)
    assert ring.take(CAPACITY + 1) is None
    assert ring.take(CAPACITY) == 0
    assert ring.take(1) is None
    ring.release(1)
    assert ring.take(1) == 0


@given(st.integers(0, 10**6))
def test_sizes_are_whole_cache_lines(size: int) -> None:
    assert aligned(size) % ALIGN == 0
    assert 0 <= aligned(size) - size < ALIGN


def test_two_mappings_are_one_memory_and_it_has_no_name() -> None:
    before = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
    first, descriptor = create(4096)
    second = Segment(descriptor)
    os.close(descriptor)
    first.write(np.array([1, 9, 2, 9, 3], dtype="i4")[::2], 64)
    seen = second.view(np.dtype("i4"), (3,), 64)
    assert seen.tolist() == [1, 2, 3]
    del first, second
    assert seen.tolist() == [1, 2, 3]  # an array keeps it mapped
    assert (sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []) == before


@pytest.mark.parametrize(("shape", "offset"), [((4,), 4092), ((-1,), 0), ((1025,), 0), ((2,), -8), ((1,), 1 << 70)])
def test_arrays_lie_inside(shape: tuple[int, ...], offset: int) -> None:
    segment, descriptor = create(4096)
    os.close(descriptor)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        segment.view(np.dtype("i4"), shape, offset)


def test_a_lack_of_memory_is_an_os_error_and_leaves_no_descriptor() -> None:
    gc.collect()  # what other tests left
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError):
        create(1 << 62)
    assert len(os.listdir("/dev/fd")) == before
