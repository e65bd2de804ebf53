"""Which requests run in the next step, and with how many tokens each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from pegboard_engine.pages import PagePool
from pegboard_engine.request import Request, State


@dataclass(slots=True)
class Schedule:
    """One step: requests and the number of tokens of each, those with one token first.

    num_decodes: how many of the first entries have one new token.
    """

    requests: list[Request] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    num_decodes: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests)


class Scheduler:
    """First come, first served under a token budget: running requests first, then as many waiting ones as fit.

    A request that needs a page when none is free takes those of the latest one, which later computes its tokens anew. Owns the
    state and the pages of every request.
    """

    def __init__(self, pages: PagePool, *, page_size: int, max_num_tokens: int, max_num_seqs: int) -> None:
        self.pages = pages
        self.page_size = page_size
        self.max_num_tokens = max_num_tokens
        self.max_num_seqs = max_num_seqs
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0

    def __iter__(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def schedule(self) -> Schedule:
        """Choose the next step and give its requests the pages they need."""
        self.pages.expire_leases()
        step, budget, preempted = Schedule(), self.max_num_tokens, self.num_preemptions
        order = deque(sorted(self.running, key=_is_prefill))
        while order and budget:
            request = order[0]
            count = min(request.confirmed - request.scheduled, budget)
            if not self._make_room(request, request.scheduled + count, order):
                break
            order.popleft()
            budget -= self._enter(step, request, count)
        if self.num_preemptions == preempted:
            self._admit(step, budget)
        return step

    def computed(self, step: Schedule) -> None:
        """Note that the keys and values of a step are in the cache."""
        for request, count in zip(step.requests, step.counts, strict=True):
            request.computed += count

    def finish(self, request: Request, state: State) -> None:
        """Move a request to a terminal state and free every page it holds."""
        was_running = request.state is State.RUNNING
        request.to(state)
        (self.running if was_running else self.waiting).remove(request)
        self._release(request)

    def _enter(self, step: Schedule, request: Request, count: int) -> int:
        step.num_decodes += count == 1 and step.num_decodes == len(step.requests)
        step.requests.append(request)
        step.counts.append(count)
        request.scheduled += count
        return count

    def _admit(self, step: Schedule, budget: int) -> None:
        while self.waiting and budget and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            # Each running request may need a page in the next steps: admitting into those would only preempt again.
            spare = len(self.running)
            if self._missing(request, request.confirmed) + spare > self.pages.num_free:
                break
            self.waiting.popleft()
            request.to(State.RUNNING)
            self.running.append(request)
            # The whole prompt's pages at once, though its chunks come in later steps: nobody else can take them meanwhile.
            self._grow(request, request.confirmed)
            budget -= self._enter(step, request, min(request.confirmed, budget))

    def _make_room(self, request: Request, length: int, order: deque[Request]) -> bool:
        """Get the pages for `length` tokens, preempting from the end of `order`, whose first is `request`.

        False when `request` itself had to go.
        """
        missing = self._missing(request, length)
        if missing <= 0:
            return True
        while missing > self.pages.num_free:
            victim = order.pop()
            self._preempt(victim)
            if victim is request:
                return False
        self._grow(request, length)
        return True

    def _missing(self, request: Request, length: int) -> int:
        return -(-length // self.page_size) - len(request.pages)

    def _grow(self, request: Request, length: int) -> None:
        missing = self._missing(request, length)
        if missing > 0:
            request.pages += self.pages.allocate(missing, after=request.pages[-1] if request.pages else 0)

    def _preempt(self, request: Request) -> None:
        request.to(State.PREEMPTED)
        self.running.remove(request)
        self.waiting.appendleft(request)
        self._release(request)
        self.num_preemptions += 1

    def _release(self, request: Request) -> None:
        self.pages.free(request.pages)
        request.pages = []
        request.computed = request.scheduled = 0


def _is_prefill(request: Request) -> bool:
    return request.confirmed - request.scheduled > 1
