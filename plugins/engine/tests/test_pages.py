"""The pool of pages against a plain set of free ones and a counter of holders."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pegboard_engine.pages import Lease, OutOfPages, PagePool


class Pool(RuleBasedStateMachine):
    """Random holders and leases under a clock that only the test moves."""

    @initialize(pages=st.integers(2, 12))
    def begin(self, pages: int) -> None:
        self.now = 0.0
        self.pool = PagePool(pages, clock=lambda: self.now)
        self.held: list[list[int]] = []
        self.leases: list[Lease] = []

    def count(self) -> Counter[int]:
        holders: Counter[int] = Counter()
        for pages in [*self.held, *(lease.pages for lease in self.leases)]:
            holders.update(pages)
        return holders

    @rule(count=st.integers(0, 6), after=st.integers(0, 12))
    def allocate(self, count: int, after: int) -> None:
        before = self.count()
        free = self.pool.num_pages - 1 - len(before)
        if count > free:
            with pytest.raises(OutOfPages):
                self.pool.allocate(count, after)
            return
        taken = self.pool.allocate(count, after)
        assert len(set(taken)) == count
        assert not set(taken) & set(before)
        assert all(0 < page < self.pool.num_pages for page in taken)
        if count and 0 < after < self.pool.num_pages - 1 and after + 1 not in before:
            assert taken[0] == after + 1
        self.held.append(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ttl=st.integers(1, 5))
    def lease(self, data: st.DataObject, ttl: int) -> None:
        pages = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        self.leases.append(self.pool.lease(pages, ttl))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.pool.end_lease(lease)
        self.pool.end_lease(lease)

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        over = [lease for lease in self.leases if lease.expires <= self.now]
        assert self.pool.expire_leases() == len(over)
        self.leases = [lease for lease in self.leases if lease.expires > self.now]

    @rule(page=st.integers(-1, 13))
    def free_what_nobody_holds(self, page: int) -> None:
        if page not in self.count():
            with pytest.raises(RuntimeError, match=f"page {page} is not held"):
                self.pool.free([page])

    @invariant()
    def counts_agree(self) -> None:
        assert self.pool.num_held == len(self.count())
        assert self.pool.num_free == self.pool.num_pages - 1 - len(self.count())

    def teardown(self) -> None:
        self.pool.end_all_leases()
        for pages in self.held:
            self.pool.free(pages)
        assert self.pool.num_held == 0
        assert sorted(self.pool.allocate(self.pool.num_free)) == list(range(1, self.pool.num_pages))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_pool_needs_a_page_to_give() -> None:
    with pytest.raises(ValueError, match="page 0 is reserved"):
        PagePool(1)
    with pytest.raises(RuntimeError, match="cannot be leased"):
        PagePool(3).lease([1], 1.0)
