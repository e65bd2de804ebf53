"""The scheduler over a model that only the test knows: token p of a request is a function of its tokens before."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pegboard.types import SamplingParams, StepPlan
from pegboard_engine.inputs import build_plan
from pegboard_engine.pages import PagePool
from pegboard_engine.policy import POLICIES
from pegboard_engine.prefix import Chain, PrefixCache
from pegboard_engine.request import Request, State
from pegboard_engine.scheduler import Schedule, Scheduler
from pegboard_engine.table import Table

SIZE = 4


def following(tokens: list[int]) -> int:
    """The token that comes after these."""
    return sum((place + 1) * token for place, token in enumerate(tokens)) % 97


class Device:
    """Executes plans over pages whose places hold (token, everything before it): what a real cache stands for."""

    def __init__(self, num_pages: int, table: Table) -> None:
        self.places: list[tuple[int, ...] | None] = [None] * (num_pages * SIZE)
        self.table = np.zeros_like(table.pages)
        self.last = np.zeros(table.num_slots, dtype=np.int64)

    def run(self, schedule: Schedule, number: int, table: Table) -> np.ndarray:
        plan = build_plan(number, schedule, table)
        slots, columns, pages = plan.table
        self.table[slots, columns] = pages
        drawn, row = {}, 0
        self.accepted = None
        for slot, count, length in zip(plan.slots, plan.query_lens, plan.seq_lens, strict=True):
            for position in range(length - count, length):
                token = int(plan.input_ids[row])
                token = int(self.last[slot]) if token < 0 else token
                assert plan.positions[row] == position
                before = self.read(slot, position)
                if plan.slot_mapping[row] >= SIZE:
                    self.places[plan.slot_mapping[row]] = (*before, token)
                row += 1
            drawn[row - 1] = following(list(self.read(slot, length)))
        drafts = plan.extras.get("drafts")
        if drafts is not None:
            return self.verify(plan, drafts)
        ids = np.array([drawn[index] for index in plan.logits_indices.tolist()], dtype=np.int64)
        self.last[plan.logits_slots] = ids
        return ids

    def verify(self, plan: StepPlan, drafts: np.ndarray) -> np.ndarray:
        """As the sampler does: a proposed token stands as long as it is what would have come."""
        lengths = dict(zip(plan.slots.tolist(), plan.seq_lens.tolist(), strict=True))
        ids, accepted, start = [], [], 0
        for count in drafts.tolist():
            slot, rows = int(plan.logits_slots[start]), plan.logits_indices[start : start + count + 1]
            tokens = self.read(slot, lengths[slot])
            first = len(tokens) - count
            drawn = [following(list(tokens[: first + i])) for i in range(count + 1)]
            assert plan.input_ids[rows[1:]].tolist() == list(tokens[first:])
            stands = [drawn[i] == tokens[first + i] for i in range(count)]
            accepted.append(stands.index(False) if False in stands else count)
            self.last[slot] = drawn[accepted[-1]]
            ids += drawn
            start += count + 1
        self.accepted = np.array(accepted)
        return np.array(ids, dtype=np.int64)

    def read(self, slot: int, length: int) -> tuple[int, ...]:
        """Tokens that the cache holds of a slot's sequence; each place must agree with those before it."""
        if not length:
            return ()
        page = self.table[slot, (length - 1) // SIZE]
        found = self.places[page * SIZE + (length - 1) % SIZE]
        assert page > 0 and found is not None and len(found) == length
        assert length == 1 or found[:-1] == self.read(slot, length - 1)
        return found


class Bench:
    """A scheduler with its device; `depth` steps in flight."""

    def __init__(
        self,
        pages: int,
        *,
        tokens: int = 100,
        seqs: int = 10,
        depth: int = 1,
        caching: bool = True,
        policy: str = "fcfs",
        look_past: int = 16,
        watermark: int = 0,
    ) -> None:
        self.pool = PagePool(pages)
        self.table = Table(seqs, pages * SIZE, SIZE)
        self.prefixes = PrefixCache(self.pool, SIZE, enabled=caching)
        self.chosen = Scheduler(
            self.pool,
            self.table,
            self.prefixes,
            max_num_tokens=tokens,
            rank=POLICIES[policy],
            look_past=look_past,
            watermark=watermark,
        )
        self.device = Device(pages, self.table)
        self.depth = depth
        self.flights: deque[tuple[Schedule, np.ndarray, np.ndarray | None]] = deque()
        self.guesses = 0
        self.requests: list[Request] = []
        self.texts: dict[str, list[int]] = {}
        self.steps = 0

    def add(self, prompt: list[int], output: int, *, salt: str = "", name: str = "") -> Request:
        one = Request(
            name or f"r{len(self.requests)}",
            np.array(prompt, dtype=np.int32),
            SamplingParams(),
            arrival=len(self.requests),
            limit=len(prompt) + output,
            root=self.prefixes.root(salt),
        )
        one.sync = bool(self.guesses)
        self.requests.append(one)
        self.chosen.add(one)
        return one

    def step(self) -> tuple[list[str], list[int]]:
        """Fill the flights and collect one; return the names and counts of the first step that was scheduled."""
        told: tuple[list[str], list[int]] = ([], [])
        while len(self.flights) < self.depth:
            if self.guesses:
                self.guess()
            if (schedule := self.chosen.schedule()) is None:
                break
            assert schedule.counts.sum() <= self.chosen.max_num_tokens
            assert (schedule.counts[: schedule.num_decodes] == 1).all()
            self.steps += 1
            if not told[0]:
                told = [self.table.request(slot).id for slot in schedule.slots], schedule.counts.tolist()
            ids = self.device.run(schedule, self.steps, self.table)
            self.flights.append((schedule, ids, self.device.accepted))
        if self.flights:
            progress = self.chosen.collect(*self.flights.popleft())
            for slot, stopped, full in zip(progress.slots, progress.stopped, progress.full, strict=True):
                if stopped or full:
                    self.end(self.table.request(slot), State.STOPPED if stopped else State.LENGTH)
        return told

    def guess(self) -> None:
        """Propose up to `guesses` tokens for every request that waits for one, of which some are wrong."""
        table = self.table
        for slot in table.running.tolist():
            if table.known[slot] - table.scheduled[slot] == 1 and not table.inflight[slot]:
                tokens, ids = table.tokens[slot, : table.known[slot]].tolist(), []
                for number in range((self.steps + slot) % (self.guesses + 1)):
                    ids.append((following([*tokens, *ids]) + (number == self.steps % 4)) % 97)
                if table.known[slot] < table.limit[slot] - 1:
                    self.chosen.draft(slot, ids)

    def end(self, request: Request, state: State) -> None:
        self.chosen.finish(request, state)
        self.texts[request.id] = request.tokens.tolist()

    def run(self, most: int = 3000) -> None:
        for _ in range(most):
            if not self.chosen.has_work:
                break
            self.step()
        assert not self.chosen.has_work, "a request starves"
        assert self.pool.num_held == 0

    def check(self, request: Request) -> None:
        """The output is what the prompt leads to, whatever happened on the way."""
        tokens = self.texts[request.id]
        for place in range(request.num_prompt, len(tokens)):
            assert tokens[place] == following(tokens[:place])


def test_running_requests_first_then_as_many_waiting_as_fit() -> None:
    bench = Bench(100, tokens=10)
    for number, length in enumerate((4, 12, 3)):
        bench.add([number] * length, 8)
    assert bench.step() == (["r0", "r1"], [4, 6])
    # One token of the first, then the rest of the second, then what is left for the third.
    assert bench.step() == (["r0", "r1", "r2"], [1, 6, 3])
    assert bench.step() == (["r0", "r1", "r2"], [1, 1, 1])


def test_no_more_sequences_than_allowed() -> None:
    bench = Bench(100, seqs=2)
    for number in range(3):
        bench.add([number, 1], 2)
    assert bench.step()[0] == ["r0", "r1"]
    assert bench.step()[0] == ["r0", "r1"]  # both end
    assert bench.step()[0] == ["r2"]


@pytest.mark.parametrize("depth", [1, 2])
def test_the_latest_gives_its_pages_and_computes_again(depth: int) -> None:
    bench = Bench(1 + 5, depth=depth)
    first, second = bench.add([1] * 7, 9), bench.add([2] * 7, 9)
    states = set()
    for _ in range(60):
        if not bench.chosen.has_work:
            break
        bench.step()
        states.add(second.state)
        assert first.state is not State.PREEMPTED
    assert State.PREEMPTED in states
    assert bench.chosen.num_preemptions >= 1
    bench.run()
    bench.check(first)
    bench.check(second)
    assert len(bench.texts["r1"]) == 16


def test_nobody_is_admitted_into_the_pages_that_a_preemption_freed() -> None:
    bench = Bench(1 + 6)
    bench.add([1] * 11, 8)
    bench.add([2] * 11, 8)
    while not bench.chosen.num_preemptions:
        bench.step()
    before = bench.chosen.num_preemptions
    while any(request.state is State.RUNNING for request in bench.requests[:1]):
        bench.step()
    assert bench.chosen.num_preemptions == before


def test_a_smaller_request_may_overtake_one_that_does_not_fit_but_not_for_ever() -> None:
    bench = Bench(1 + 5, look_past=2)
    bench.add([9] * 8, 4)
    bench.step()
    large = bench.add([1] * 15, 1)
    small = [bench.add([2 + i], 1) for i in range(5)]
    began = []
    while bench.chosen.has_work:
        began += [name for name in bench.step()[0] if name not in began]
    assert began.index(small[0].id) < began.index(large.id)
    assert began.index(large.id) < began.index(small[4].id)


def test_the_watermark_keeps_pages_for_those_who_run() -> None:
    bench = Bench(1 + 6, watermark=3)
    bench.add([1] * 8, 9)
    bench.add([2] * 8, 1)
    assert bench.step()[0] == ["r0"]
    alone = Bench(1 + 3, watermark=3)
    alone.add([1] * 8, 1)
    assert alone.step()[0] == ["r0"], "with nobody running there is nobody to keep pages for"


def test_urgent_requests_run_first() -> None:
    bench = Bench(100, seqs=1, policy="priority")
    from pegboard.interfaces.engine import RequestOptions

    for name, priority in (("late", 5), ("soon", -1), ("next", 0)):
        one = bench.add([1, 2], 1, name=name)
        bench.chosen.waiting.remove(one)
        one.options = RequestOptions(priority=priority)
        bench.chosen.waiting.add(one)
    assert [bench.step()[0] for _ in range(3)] == [["soon"], ["next"], ["late"]]


def test_a_known_beginning_is_not_computed_again() -> None:
    bench = Bench(100)
    prompt = list(range(10))
    bench.add(prompt, 3)
    bench.run()
    second = bench.add([*prompt, 50, 51], 3)
    assert bench.step()[1] == [4]  # two pages of four tokens are known
    assert second.cached == 8
    third = bench.add(prompt[:8], 4)
    assert bench.step() == (["r1", "r2"], [1, 1])  # all of it is known: one token, for its logits
    assert third.cached == 7
    bench.run()
    for request in bench.requests:
        bench.check(request)


def test_what_is_being_computed_is_waited_for() -> None:
    bench = Bench(100, tokens=8)
    prompt = list(range(16))
    bench.add(prompt, 2)
    bench.add([*prompt, 77], 2)
    other = bench.add([90] * 3, 2)
    assert bench.step() == (["r0"], [8])
    # The second waits for the pages that the first computes; the third does not wait for the second.
    assert bench.step() == (["r0"], [8])
    assert bench.step() == (["r0", "r1", "r2"], [1, 1, 3])
    assert bench.requests[1].cached == 16
    bench.run()
    assert other.num_prompt == 3
    for request in bench.requests:
        bench.check(request)


def test_when_who_computes_a_beginning_is_gone_another_one_does() -> None:
    bench = Bench(100, tokens=8)
    first, second = bench.add([3] * 16, 2), bench.add([3] * 16, 2)
    bench.step()
    bench.end(first, State.ABORTED)
    bench.run()
    bench.check(second)
    assert second.cached == 8


def test_tenants_share_nothing() -> None:
    bench = Bench(100)
    bench.add([1] * 12, 2, salt="a")
    bench.run()
    bench.add([1] * 12, 2, salt="b")
    assert bench.step()[1] == [12]


def test_what_runs_goes_on_under_the_root_of_new_weights() -> None:
    bench = Bench(100)
    one = bench.add(list(range(9)), 20)
    for _ in range(4):
        bench.step()
    old, kept = one.root, bench.prefixes.find(one.digests)
    bench.chosen.renew(one, bench.prefixes.root("new"))
    for _ in range(9):
        bench.step()
    assert one.root != old
    count = int(bench.table.published[one.slot])
    assert count > len(kept) == 3
    expected = Chain()
    bench.prefixes.extend(expected, one.root, bench.table.tokens[one.slot, : count * SIZE])
    assert one.digests.after(0) == expected.after(0)
    # Nobody else begins so: the first pages are of the old weights, which this root does not lead to.
    assert bench.prefixes.find(one.digests) == []
    bench.run()
    bench.check(one)


def test_an_illegal_end_raises_and_frees_nothing_twice() -> None:
    bench = Bench(10)
    one = bench.add([1, 2], 2)
    bench.step()
    bench.chosen.finish(one, State.ABORTED)
    with pytest.raises(RuntimeError, match="not a legal transition"):
        bench.chosen.finish(one, State.ABORTED)
    assert bench.pool.num_held == 0


def test_a_result_for_a_request_that_is_gone_does_not_count() -> None:
    bench = Bench(100, depth=2)
    first, second = bench.add([1, 2], 9), bench.add([3, 4], 9)
    bench.step()
    bench.chosen.finish(first, State.ABORTED)
    bench.add([5, 6, 7], 3)  # takes the slot that became free
    bench.run()
    assert first.tokens.tolist()[:2] == [1, 2]
    bench.check(second)
    bench.check(bench.requests[2])


class Life(RuleBasedStateMachine):
    """Requests with common beginnings come, run, are aborted and preempted in a cache that is too small for all of them."""

    @initialize(
        pages=st.integers(6, 14),
        tokens=st.integers(3, 20),
        seqs=st.integers(1, 3),
        depth=st.integers(1, 2),
        caching=st.booleans(),
        watermark=st.integers(0, 2),
        guesses=st.integers(0, 5),
    )
    def begin(
        self, pages: int, tokens: int, seqs: int, depth: int, caching: bool, watermark: int, guesses: int
    ) -> None:
        self.bench = Bench(pages, tokens=tokens, seqs=seqs, depth=depth, caching=caching, watermark=watermark)
        self.bench.guesses = guesses
        self.longest = (pages - 1) * SIZE

    @rule(kind=st.integers(0, 2), prompt=st.integers(1, 20), output=st.integers(1, 12), salt=st.sampled_from(["", "x"]))
    def add(self, kind: int, prompt: int, output: int, salt: str) -> None:
        prompt = min(prompt, self.longest - 1)
        tokens = [(kind * place) % 5 for place in range(prompt)]
        self.bench.add(tokens, min(output, self.longest - prompt), salt=salt)

    @rule()
    def step(self) -> None:
        self.bench.step()

    @precondition(lambda self: self.bench.chosen.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = [request for request in self.bench.requests if not request.finished]
        self.bench.end(data.draw(st.sampled_from(live)), State.ABORTED)

    @rule()
    def forget(self) -> None:
        self.bench.prefixes.reset()

    @invariant()
    def pages_are_shared_by_equal_beginnings_alone(self) -> None:
        table, owners = self.bench.table, {}
        count: dict[int, int] = {}
        for slot in table.running.tolist():
            request = table.request(slot)
            assert request.state is State.RUNNING
            tokens = table.tokens[slot, : table.confirmed(slot)].tolist()
            for column in range(int(table.num_pages[slot])):
                page = int(table.pages[slot, column])
                count[page] = count.get(page, 0) + 1
                beginning = (request.root, tuple(tokens[: (column + 1) * SIZE]))
                if page in owners:
                    assert owners[page] == beginning and len(beginning[1]) == (column + 1) * SIZE
                owners[page] = beginning
        pool = self.bench.pool
        assert all(pool.holders(page) == number for page, number in count.items())
        assert pool.num_held == len(count)
        assert len(table) <= table.num_slots

    def teardown(self) -> None:
        self.bench.run()
        for request in self.bench.requests:
            self.bench.check(request)
            if request.state is not State.ABORTED:
                assert len(self.bench.texts[request.id]) == request.limit


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), tokens=st.integers(10, 40))
@settings(deadline=None, max_examples=40)
def test_first_come_first_served(lengths: list[int], tokens: int) -> None:
    bench = Bench(1000, tokens=tokens)
    for number, length in enumerate(lengths):
        bench.add([number] * length, 3)
    began: list[str] = []
    while bench.chosen.has_work:
        began += [name for name in bench.step()[0] if name not in began]
    assert began == [f"r{number}" for number in range(len(lengths))]


@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_proposed_rightly_saves_steps_and_changes_nothing(depth: int) -> None:
    steps = []
    for guesses in (0, 4):
        bench = Bench(100, depth=depth)
        bench.guesses = guesses
        request = bench.add([3, 1, 4], 30)
        bench.run()
        bench.check(request)
        assert len(bench.texts[request.id]) == 33
        steps.append(bench.steps)
    assert steps[1] < 0.7 * steps[0]
