"""The scheduler with requests whose tokens come from the test: no model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pegboard.types import SamplingParams
from pegboard_engine.pages import PagePool
from pegboard_engine.request import Request, State
from pegboard_engine.scheduler import Scheduler

SIZE = 4


def request(name: str, prompt: int, output: int) -> Request:
    tokens = list(range(prompt))
    return Request(name, tokens, SamplingParams(), limit=prompt + output, seed=0, stop_ids=frozenset())


def scheduler(pages: int, *, tokens: int = 100, seqs: int = 10) -> Scheduler:
    return Scheduler(PagePool(pages), page_size=SIZE, max_num_tokens=tokens, max_num_seqs=seqs)


def finish_step(chosen: Scheduler) -> tuple[list[str], list[int]]:
    """Take one step: every request whose tokens are all computed gets another one."""
    step = chosen.schedule()
    chosen.computed(step)
    for one in step.requests:
        if one.computed == one.confirmed:
            state = one.append(one.confirmed)
            if state is not None:
                chosen.finish(one, state)
    return [one.id for one in step.requests], step.counts


def test_running_requests_first_then_as_many_waiting_as_fit() -> None:
    chosen = scheduler(100, tokens=10)
    for name, length in (("a", 4), ("b", 12), ("c", 3)):
        chosen.add(request(name, length, 8))
    assert finish_step(chosen) == (["a", "b"], [4, 6])
    # One token of a, then the rest of b, then what is left for c.
    assert finish_step(chosen) == (["a", "b", "c"], [1, 6, 3])
    step = chosen.schedule()
    assert (step.counts, step.num_decodes) == ([1, 1, 1], 3)


def test_no_more_sequences_than_allowed() -> None:
    chosen = scheduler(100, seqs=2)
    for name in "abc":
        chosen.add(request(name, 2, 2))
    assert finish_step(chosen)[0] == ["a", "b"]
    assert finish_step(chosen)[0] == ["a", "b"]  # both end
    assert finish_step(chosen)[0] == ["c"]


def test_the_latest_gives_its_pages_and_computes_again() -> None:
    chosen = scheduler(1 + 5)
    first, second = request("first", 7, 9), request("second", 7, 9)
    chosen.add(first)
    chosen.add(second)
    seen = set()
    for _ in range(40):
        if not chosen.has_work:
            break
        finish_step(chosen)
        seen.add(second.state)
        assert first.state is not State.PREEMPTED
    assert State.PREEMPTED in seen
    assert chosen.num_preemptions >= 1
    assert first.tokens == list(range(16))
    assert second.tokens == list(range(16))
    assert chosen.pages.num_held == 0


def test_an_illegal_end_raises_and_frees_nothing_twice() -> None:
    chosen = scheduler(10)
    one = request("a", 2, 2)
    chosen.add(one)
    finish_step(chosen)
    chosen.finish(one, State.ABORTED)
    with pytest.raises(RuntimeError, match="not a legal transition"):
        chosen.finish(one, State.ABORTED)
    assert chosen.pages.num_held == 0


class Life(RuleBasedStateMachine):
    """Requests come, run, are aborted and preempted in a cache that is too small for all of them."""

    @initialize(pages=st.integers(6, 14), tokens=st.integers(3, 20), seqs=st.integers(1, 3))
    def begin(self, pages: int, tokens: int, seqs: int) -> None:
        self.chosen = scheduler(pages, tokens=tokens, seqs=seqs)
        self.longest = (pages - 1) * SIZE
        self.count = 0
        self.ended = 0

    @rule(prompt=st.integers(1, 20), output=st.integers(1, 12))
    def add(self, prompt: int, output: int) -> None:
        prompt = min(prompt, self.longest - 1)
        self.count += 1
        self.chosen.add(request(f"r{self.count}", prompt, min(output, self.longest - prompt)))

    @rule()
    def step(self) -> None:
        step = self.chosen.schedule()
        assert sum(step.counts) <= self.chosen.max_num_tokens
        assert len(self.chosen.running) <= self.chosen.max_num_seqs
        assert all(count == 1 for count in step.counts[: step.num_decodes])
        for one, count in zip(step.requests, step.counts, strict=True):
            assert one.computed + count == one.scheduled <= one.confirmed
            assert len(one.pages) * SIZE >= one.scheduled
        self.chosen.computed(step)
        for one in step.requests:
            if one.computed == one.confirmed and (state := one.append(one.confirmed)) is not None:
                assert one.tokens == list(range(one.limit))
                self.chosen.finish(one, state)
                self.ended += 1

    @precondition(lambda self: self.chosen.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.chosen.finish(data.draw(st.sampled_from(list(self.chosen))), State.ABORTED)
        self.ended += 1

    @invariant()
    def pages_belong_to_one_running_request_each(self) -> None:
        held = [page for one in self.chosen for page in one.pages]
        assert len(held) == len(set(held)) == self.chosen.pages.num_held
        assert all(one.state is State.RUNNING for one in self.chosen.running)
        assert all(not one.pages for one in self.chosen.waiting)

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.chosen.has_work:
                break
            self.step()
        assert self.ended == self.count, "a request starves"
        assert self.chosen.pages.num_held == 0


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), tokens=st.integers(10, 40))
@settings(deadline=None, max_examples=40)
def test_first_come_first_served(lengths: list[int], tokens: int) -> None:
    chosen = scheduler(1000, tokens=tokens)
    for number, length in enumerate(lengths):
        chosen.add(request(str(number), length, 3))
    began: list[str] = []
    while chosen.has_work:
        began += [name for name in finish_step(chosen)[0] if name not in began]
    assert began == [str(number) for number in range(len(lengths))]
