"""Requests whose time is over."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from pegboard_engine.request import Request, State


class Timeouts:
    """A heap of deadlines. A request that ended is passed over when its time comes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, bool, Request]] = []

    def watch(self, request: Request) -> None:
        """Note the deadline and the queue time-out of a request."""
        options = request.options
        for seconds, queued in ((options.deadline, False), (options.queue_timeout, True)):
            if seconds is not None:
                heapq.heappush(self._heap, (request.created + seconds, request.arrival, queued, request))

    def over(self) -> Iterator[Request]:
        """Yield the requests whose time is over now, those that waited too long for their first step included."""
        while self._heap and self._heap[0][0] <= self._clock():
            _, _, queued, request = heapq.heappop(self._heap)
            waits = request.state in (State.WAITING, State.WAITING_FOR_GRAMMAR)
            if not request.finished and (waits or not queued):
                yield request
