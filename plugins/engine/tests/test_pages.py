"""The pool of pages against plain counters of holders and a list of kept pages in the order of their last use."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pegboard_engine.pages import Lease, OutOfPages, PagePool


class Pool(RuleBasedStateMachine):
    """Random holders, kept contents and leases under a clock that only the test moves."""

    @initialize(pages=st.integers(2, 12))
    def begin(self, pages: int) -> None:
        self.now = 0.0
        self.pool = PagePool(pages, clock=lambda: self.now)
        self.held: list[list[int]] = []
        self.leases: list[Lease] = []
        self.kept: set[int] = set()
        self.asleep: list[int] = []  # kept and free, longest unused first
        self.evicted: list[int] = []
        self.pool.on_evict = self.evicted.append

    def count(self) -> Counter[int]:
        holders: Counter[int] = Counter()
        for pages in [*self.held, *(lease.pages for lease in self.leases)]:
            holders.update(pages)
        return holders

    def released(self, pages: list[int]) -> None:
        holders = self.count()
        self.asleep += [page for page in reversed(pages) if page in self.kept and page not in holders]

    @rule(count=st.integers(0, 6), after=st.integers(0, 12))
    def allocate(self, count: int, after: int) -> None:
        before, asleep = self.count(), list(self.asleep)
        free = self.pool.num_pages - 1 - len(before)
        if count > free:
            with pytest.raises(OutOfPages):
                self.pool.allocate(count, after)
            return
        self.evicted.clear()
        taken = self.pool.allocate(count, after)
        assert len(set(taken)) == count
        assert not set(taken) & set(before)
        assert all(0 < page < self.pool.num_pages for page in taken)
        lost = max(0, count - (free - len(asleep)))
        assert self.evicted == asleep[:lost] == [page for page in taken if page in asleep]
        empty_behind = 0 < after < self.pool.num_pages - 1 and after + 1 not in before and after + 1 not in asleep
        if count and empty_behind:
            assert taken[0] == after + 1
        self.kept -= set(self.evicted)
        del self.asleep[:lost]
        self.held.append(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.free(pages)
        self.released(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        pages = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        if pages:
            page = data.draw(st.sampled_from(pages))
            self.pool.keep([page])
            self.kept.add(page)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.kept)), unique=True, max_size=4))
        self.pool.hold(pages)
        self.asleep = [page for page in self.asleep if page not in pages]
        self.held.append(pages)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.kept)))
        self.pool.forget(page)
        self.kept.remove(page)
        self.asleep = [one for one in self.asleep if one != page]

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
        self.released(list(lease.pages))

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        over = [lease for lease in self.leases if lease.expires <= self.now]
        assert self.pool.expire_leases() == len(over)
        for lease in over:
            self.leases.remove(lease)
            self.released(list(lease.pages))

    @rule(page=st.integers(-1, 13))
    def use_what_nobody_holds(self, page: int) -> None:
        if page in self.count():
            return
        for act in (
            lambda page: self.pool.keep([page]),
            lambda page: self.pool.free([page]),
            lambda page: self.pool.lease([page], 1),
        ):
            with pytest.raises(RuntimeError, match=f"page {page} is not held"):
                act(page)
        if 0 < page < self.pool.num_pages and page not in self.kept:
            with pytest.raises(RuntimeError, match=f"page {page} is neither held nor kept"):
                self.pool.hold([page])

    @invariant()
    def counts_agree(self) -> None:
        holders = self.count()
        assert self.pool.num_held == len(holders)
        assert self.pool.num_free == self.pool.num_pages - 1 - len(holders)
        assert self.pool.num_kept == len(self.asleep)
        assert all(self.pool.holders(page) == holders[page] for page in range(1, self.pool.num_pages))

    def teardown(self) -> None:
        for pages in self.held:
            self.pool.free(pages)
        self.pool.end_all_leases()
        assert self.pool.num_held == 0


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_a_pool_needs_a_page_beside_the_reserved_one() -> None:
    with pytest.raises(ValueError, match="pool of 1 pages"):
        PagePool(1)


def test_pages_follow_one_another_where_they_can() -> None:
    pool = PagePool(10)
    assert pool.allocate(3) == [1, 2, 3]
    assert pool.allocate(1) == [4]
    assert pool.allocate(2, after=4) == [5, 6]


def test_the_end_of_a_sequence_is_given_out_before_its_beginning() -> None:
    pool = PagePool(5)
    pages = pool.allocate(4)
    for page in pages:
        pool.keep([page])
    pool.free(pages)
    assert pool.allocate(3) == [4, 3, 2]
    assert pool.num_kept == 1
