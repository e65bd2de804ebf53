"""Who comes first, and who has to go when pages run out."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from pegboard_engine.request import Request

Rank = tuple[int, ...]


class QueuePolicy(Protocol):
    """Order of the waiting requests."""

    def __call__(self, request: Request) -> Rank:
        """Return a rank that no other request has and that never changes; the lowest is admitted first."""


class PreemptionPolicy(Protocol):
    """Who computes its tokens anew later, so that the others can go on."""

    def __call__(self, running: Sequence[Request], rank: QueuePolicy) -> Request:
        """Return one of `running`, which are in the order of their admission."""


def fcfs(request: Request) -> Rank:
    """First come, first served."""
    return (request.arrival,)


def priority(request: Request) -> Rank:
    """Lower priorities first, each in the order of arrival."""
    return (request.options.priority, request.arrival)


def highest_rank(running: Sequence[Request], rank: QueuePolicy) -> Request:
    """The one that would be admitted last."""
    return max(running, key=rank)


POLICIES: Mapping[str, QueuePolicy] = {"fcfs": fcfs, "priority": priority}


class WaitingQueue:
    """Requests in the order of a policy. A preempted one returns to the place that its rank gives it."""

    def __init__(self, rank: QueuePolicy) -> None:
        self._rank: Callable[[Request], Rank] = rank
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    def add(self, request: Request) -> None:
        """Put a request in its place."""
        insort(self._requests, request, key=self._rank)

    def pop(self, index: int) -> Request:
        """Take the request at `index` out."""
        return self._requests.pop(index)

    def remove(self, request: Request) -> None:
        """Take this request out. Raises ValueError when it is not here."""
        index = bisect_left(self._requests, self._rank(request), key=self._rank)
        if index == len(self._requests) or self._requests[index] is not request:
            raise ValueError(f"request {request.id} does not wait")
        del self._requests[index]
