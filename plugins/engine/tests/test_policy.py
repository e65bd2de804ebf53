from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.interfaces.engine import RequestOptions
from pegboard.types import SamplingParams
from pegboard_engine.policy import POLICIES, WaitingQueue, highest_rank
from pegboard_engine.request import Request


def request(arrival: int, priority: int = 0) -> Request:
    return Request(
        f"r{arrival}",
        np.zeros(1, dtype=np.int32),
        SamplingParams(),
        RequestOptions(priority=priority),
        arrival=arrival,
        limit=2,
    )


@given(priorities=st.lists(st.integers(-2, 2), max_size=12), policy=st.sampled_from(sorted(POLICIES)))
def test_the_queue_is_in_the_order_of_its_policy(priorities: list[int], policy: str) -> None:
    queue = WaitingQueue(POLICIES[policy])
    requests = [request(arrival, priority) for arrival, priority in enumerate(priorities)]
    for one in reversed(requests):
        queue.add(one)
    expected = sorted(requests, key=(lambda r: r.options.priority) if policy == "priority" else (lambda r: r.arrival))
    assert list(queue) == expected
    for one in requests:
        queue.remove(one)
    assert len(queue) == 0


def test_takes_out_what_is_there() -> None:
    queue = WaitingQueue(POLICIES["fcfs"])
    queue.add(request(1))
    with pytest.raises(ValueError, match="request r2 does not wait"):
        queue.remove(request(2))
    assert queue.pop(0).arrival == 1


def test_the_least_urgent_has_to_go() -> None:
    running = [request(1, 5), request(2, 0), request(3, 0)]
    assert highest_rank(running, POLICIES["fcfs"]).arrival == 3
    assert highest_rank(running, POLICIES["priority"]).arrival == 1
