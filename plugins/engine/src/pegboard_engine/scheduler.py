"""Which requests run in the next step, and with how many tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pegboard_engine.pages import PagePool
from pegboard_engine.policy import PreemptionPolicy, QueuePolicy, WaitingQueue, fcfs, highest_rank
from pegboard_engine.prefix import Chain, PrefixCache
from pegboard_engine.request import Request, State
from pegboard_engine.rows import first_rows, spread
from pegboard_engine.table import Table

# Waiting requests that one step looks at without admitting them, those whose beginning somebody computes included.
_LOOKED_AT = 256


@dataclass(slots=True)
class Schedule:
    """One step: N sequences, those with one token first.

    slots, begins, counts: [N] the tokens begins … begins + counts - 1 of each. num_decodes: the first so many have one token,
    decode_ids: its id, -1 where it is still in flight. sampled: [M] indices of the sequences that get a token from this step, and
    places: [M] where in the request it goes. drafts: [M] proposed tokens of each, which gets a row for every one of them and one
    more; None where nothing is proposed. generations: [N] of the slots. prefills: the requests behind the decodes. admitted: slots
    that this step saw placed.
    """

    slots: np.ndarray
    begins: np.ndarray
    counts: np.ndarray
    num_decodes: int
    decode_ids: np.ndarray
    sampled: np.ndarray
    places: np.ndarray
    generations: np.ndarray
    drafts: np.ndarray | None
    prefills: list[Request]
    admitted: list[int]


@dataclass(slots=True)
class Progress:
    """What a collected step did. rows: [K] of its M sampled rows that still count; slots, tokens: [K]; counts: [K] output tokens so
    far; stopped, full: [K] bool, ended by an end id or by length. runs: where tokens were proposed, all that each got; then rows are
    those of the last one, and tokens and counts are of it.
    """

    rows: np.ndarray
    slots: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray
    stopped: np.ndarray
    full: np.ndarray
    runs: list[list[int]] | None = None


class Scheduler:
    """Running requests first, then as many waiting ones as fit, under a budget of tokens. Owns states, slots and pages.

    A request that needs a page when none is free takes those of another one, which later computes its tokens anew; then nobody is
    admitted before a request ends or there is a spare page for every running one. `look_past` waiting requests may overtake one that
    does not fit, each at most `look_past` times. watermark: pages that admission leaves free.

    A request that grows beyond the table's `rope_limit` computes its tokens anew too: longer sequences have other keys.
    """

    def __init__(
        self,
        pages: PagePool,
        table: Table,
        prefixes: PrefixCache,
        *,
        max_num_tokens: int,
        rank: QueuePolicy = fcfs,
        victim: PreemptionPolicy = highest_rank,
        watermark: int = 0,
        look_past: int = 16,
    ) -> None:
        self.pages = pages
        self.table = table
        self.prefixes = prefixes
        self.max_num_tokens = max_num_tokens
        self.waiting = WaitingQueue(rank)
        self.num_preemptions = 0
        self._rank = rank
        self._victim = victim
        self._watermark = watermark
        self._look_past = look_past
        self._crowded = False

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(len(self.table) or len(self.waiting))

    def add(self, request: Request) -> None:
        """Queue a request in state waiting."""
        if self.table.rope_limit is not None and len(request.tokens) > self.table.rope_limit:
            request.long, request.root = True, self._long_root(request.root)
        self.prefixes.extend(request.digests, request.root, request.tokens)
        self.waiting.add(request)

    def draft(self, slot: int, ids: Sequence[int]) -> None:
        """Let the next step check proposed tokens of a slot that waits for its next token; as many as there is room for."""
        table = self.table
        known, limit = int(table.known[slot]), int(table.limit[slot])
        count = min(len(ids), limit - known - 1)
        if table.rope_limit is not None and not table.long[slot]:
            count = min(count, table.rope_limit - known)
        room = int(table.num_pages[slot]) * table.page_size - known
        if 0 <= room < count and self.pages.num_free > len(table):
            table.append_page_each(np.array([slot]), self.pages.allocate_each(table.last_pages(np.array([slot]))))
            room += table.page_size
        count = max(0, min(count, room))
        table.drafts[slot] = count
        table.tokens[slot, known : known + count] = ids[:count]

    def schedule(self) -> Schedule | None:
        """Choose the next step and give its requests the pages they need. None when nobody can run."""
        self.pages.expire_leases()
        if self.table.rope_limit is not None:
            self._begin_anew(self.table.rope_limit)
        table, before = self.table, self.num_preemptions
        while True:
            slots, need = self._wanted()
            single = (need == 1) & ~table.embeds[slots]
            decodes = slots[single]
            lacking = decodes[table.scheduled[decodes] >= table.num_pages[decodes] * table.page_size]
            if len(lacking) <= self.pages.num_free:
                break
            self._preempt(self._victim([table.request(slot) for slot in table.running.tolist()], self._rank))
        if len(lacking):
            table.append_page_each(lacking, self.pages.allocate_each(table.last_pages(lacking)))
        budget = self.max_num_tokens - len(decodes)
        chunked, chunks = [], []
        rest = (need > 0) & ~single
        for slot, wanted in zip(slots[rest].tolist(), need[rest].tolist(), strict=True):
            if budget <= 0:
                break
            chunked.append(slot)
            chunks.append(min(wanted, budget))
            budget -= chunks[-1]
            if table.drafts[slot]:
                table.drafts[slot] = chunks[-1] - 1
        admitted = self._admit(budget, chunked, chunks) if self.num_preemptions == before else []
        if not len(decodes) and not chunked:
            return None
        return self._step(decodes, chunked, chunks, admitted)

    def collect(self, step: Schedule, tokens: np.ndarray, accepted: np.ndarray | None = None) -> Progress:
        """Take what a step computed and sampled: `tokens` [M] int64. Rows whose request ended meanwhile do not count.

        accepted: where tokens were proposed, how many of them stand for each sampled sequence; then tokens has a row for each
        proposed token and one more.
        """
        table = self.table
        alive = table.generation[step.slots] == step.generations
        slots = step.slots if alive.all() else step.slots[alive]
        table.computed[slots] += step.counts if slots is step.slots else step.counts[alive]
        if step.drafts is not None and accepted is not None:
            return self._collect_runs(step, tokens, accepted, alive, slots)
        self._publish(slots)
        rows = np.flatnonzero(alive[step.sampled])
        slots, places, tokens = step.slots[step.sampled[rows]], step.places[rows], tokens[rows]
        table.tokens[slots, places] = tokens
        newest = table.known[slots] == places + 1
        table.last[slots[newest]] = tokens[newest]
        table.inflight[slots] -= 1
        stopped = table.stopped(slots, tokens)
        full = (places + 1 >= table.limit[slots]) & ~stopped
        return Progress(rows, slots, tokens, places + 1 - table.num_prompt[slots], stopped, full)

    def _collect_runs(
        self, step: Schedule, tokens: np.ndarray, accepted: np.ndarray, alive: np.ndarray, ran: np.ndarray
    ) -> Progress:
        """As `collect`, for sequences of which each got one token or several."""
        table = self.table
        assert step.drafts is not None
        starts = first_rows(step.drafts)
        kept = np.flatnonzero(alive[step.sampled])
        slots, runs, stopped = step.slots[step.sampled[kept]], [], []
        for slot, index in zip(slots.tolist(), kept.tolist(), strict=True):
            first, place = int(starts[index]), int(step.places[index])
            run = tokens[first : first + int(accepted[index]) + 1]
            ends = np.flatnonzero(np.isin(run, table.stop_ids[:, slot]))
            run = run[: ends[0] + 1] if len(ends) else run
            stop = place + len(run)
            table.tokens[slot, place:stop] = run
            table.known[slot], table.last[slot], table.inflight[slot] = stop, run[-1], 0
            # Keys of tokens that do not stand are in the cache too; the next step writes over them.
            table.scheduled[slot] = table.computed[slot] = stop - 1
            table.drafts[slot] = 0
            runs.append(run.tolist())
            stopped.append(bool(len(ends)))
        self._publish(ran)
        lengths = np.array([len(run) for run in runs], dtype=np.int64)
        ended = np.array(stopped, dtype=bool)
        return Progress(
            rows=starts[kept] + lengths - 1,
            slots=slots,
            tokens=np.array([run[-1] for run in runs], dtype=np.int64),
            counts=step.places[kept] + lengths - table.num_prompt[slots],
            stopped=ended,
            full=(step.places[kept] + lengths >= table.limit[slots]) & ~ended,
            runs=runs,
        )

    def finish(self, request: Request, state: State) -> None:
        """Move a request to a terminal state and free every page it holds."""
        was_running, waits = request.state is State.RUNNING, request.state is not State.WAITING_FOR_GRAMMAR
        request.to(state)
        if was_running:
            self._release(request)
            self._crowded = False
        elif waits:
            self.waiting.remove(request)

    def renew(self, request: Request, root: bytes) -> None:
        """Let a request's further pages be found under another root, since the weights changed.

        What a running one adds follows keys of the old weights: nobody else may find it.
        """
        digests, slot, table = Chain(), request.slot, self.table
        root = self._long_root(root) if request.long else root
        if slot >= 0:
            published = int(table.published[slot])
            self.prefixes.unclaim(request.digests.after(published), slot)
            root = self.prefixes.root(root, request.arrival)
            self.prefixes.extend(digests, root, table.tokens[slot, : published * table.page_size])
        request.digests, request.root, request.found = digests, root, None

    def _wanted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots in their order and how many tokens each could compute now."""
        table = self.table
        slots = table.running.copy()
        known = table.known[slots]
        need = known - table.scheduled[slots] + table.drafts[slots]
        # The last token of a full request is never computed: nothing is drawn after it.
        need[known >= table.limit[slots]] = 0
        if table.rope_limit is not None:
            need[self._outgrown(slots, table.rope_limit)] = 0
        if table.num_sync:
            need[table.sync[slots] & (table.inflight[slots] > 0)] = 0
        return slots, need

    def _outgrown(self, slots: np.ndarray, limit: int) -> np.ndarray:
        """Return [K] bool, which slots have more tokens than `limit` and keys of a sequence that has not."""
        grown: np.ndarray = (self.table.known[slots] > limit) & ~self.table.long[slots]
        return grown

    def _begin_anew(self, limit: int) -> None:
        """Let requests that outgrew the limit wait for a slot again, once their last token is known: all their keys change."""
        table = self.table
        slots = table.running[self._outgrown(table.running, limit)]
        for slot in slots[(table.inflight[slots] == 0) & (table.known[slots] < table.limit[slots])].tolist():
            request = table.request(slot)
            request.to(State.PREEMPTED)
            self._release(request)
            request.digests, request.long, request.root = Chain(), True, self._long_root(request.root)
            self.waiting.add(request)

    def _long_root(self, root: bytes) -> bytes:
        return self.prefixes.root(root, "long")

    def _step(self, decodes: np.ndarray, chunked: list[int], chunks: list[int], admitted: list[int]) -> Schedule:
        table = self.table
        if chunked:
            slots = np.concatenate([decodes, np.array(chunked, dtype=np.int64)])
            counts = np.ones(len(slots), dtype=np.int64)
            counts[len(decodes) :] = chunks
        else:
            slots, counts = decodes, np.ones(len(decodes), dtype=np.int64)
        begins = table.scheduled[slots]
        table.scheduled[slots] = ends = begins + counts
        places, drafts = table.known[slots], table.drafts[slots]
        sampled = np.flatnonzero(ends == places + drafts)
        prefills = [table.request(slot) for slot in chunked]
        embeds = [index for index, request in enumerate(prefills, len(decodes)) if request.embeds]
        if embeds:
            sampled = np.setdiff1d(sampled, embeds)
        places, drawn = places[sampled], slots[sampled]
        decode_ids = table.last[decodes]
        table.known[drawn] += 1
        table.inflight[drawn] += 1
        table.last[drawn] = -1
        return Schedule(
            slots=slots,
            begins=begins,
            counts=counts,
            num_decodes=len(decodes),
            decode_ids=decode_ids,
            sampled=sampled,
            places=places,
            generations=table.generation[slots],
            drafts=drafts[sampled] if drafts.any() else None,
            prefills=prefills,
            admitted=admitted,
        )

    def _admit(self, budget: int, chunked: list[int], chunks: list[int]) -> list[int]:
        admitted: list[int] = []
        index = passed = 0
        while index < len(self.waiting) and budget > 0 and not self.table.full and index < _LOOKED_AT:
            request = self.waiting[index]
            outcome = self._place(request)
            if isinstance(outcome, int):
                self.waiting.pop(index)
                slot = outcome
                admitted.append(slot)
                chunked.append(slot)
                chunks.append(min(int(self.table.known[slot] - self.table.scheduled[slot]), budget))
                budget -= chunks[-1]
                continue
            index += 1
            if outcome == "no room":
                passed += 1
                request.passed += 1
                if passed > self._look_past or request.passed > self._look_past:
                    break
        return admitted

    def _readable(self, request: Request) -> int:
        """Return how many pages may be found: what a token is to tell of the next one is in no cache of keys."""
        if request.embeds and request.options.pooling == "mean":
            return 0
        if request.params.prompt_logprobs is None:
            return len(request.digests)
        told = max(request.params.prompt_logprobs_start - 1, 0)
        return min(told // self.table.page_size, len(request.digests))

    def _place(self, request: Request) -> int | Literal["no room", "held"]:
        """Give a waiting request its slot and the pages of all its tokens. "held": somebody is computing its prefix just now."""
        pages, prefixes, size = self.pages, self.prefixes, self.table.page_size
        count = len(request.tokens)
        prefixes.extend(request.digests, request.root, request.tokens)
        readable = self._readable(request)
        # A request that does not fit looks again with every step, for what has been added since.
        request.found = prefixes.find_more(request.digests, request.found, readable) if readable else None
        found = request.found.pages if request.found is not None else []
        if len(found) < readable and prefixes.claimed(request.digests[len(found)]):
            return "held"
        running = len(self.table)
        spare = 0 if not running else max(self._watermark, running if self._crowded else 0)
        left = pages.num_free - (-(-count // size) - len(found)) - spare
        if left < 0 or left < sum(1 for page in found if not pages.holders(page)):
            return "no room"
        request.found = None
        pages.hold(found)
        new = pages.allocate(-(-count // size) - len(found), after=found[-1] if found else 0)
        request.to(State.RUNNING)
        computed = min(len(found) * size, count - 1)
        if request.cached < 0:
            request.cached = computed
            prefixes.queries += count
            prefixes.hits += computed
        slot = self.table.place(request, found + new, computed, len(found))
        prefixes.claim(request.digests.after(len(found)), slot)
        return slot

    def _publish(self, slots: np.ndarray) -> None:
        """Let others find the pages that a step filled."""
        if not self.prefixes.enabled:
            return
        table, size = self.table, self.table.page_size
        full = table.computed[slots] // size
        published = table.published[slots]
        more = np.flatnonzero(full > published)
        if not len(more):
            return
        slots, firsts, stops = slots[more], published[more], full[more]
        table.published[slots] = stops
        owners, indices = spread(slots, firsts, stops - firsts - 1)
        requests: list[Request] = table.requests[owners].tolist()
        places = (indices * size)[:, None] + np.arange(size)
        digests = self.prefixes.next_digests(
            [request.digests for request in requests],
            [request.root for request in requests],
            indices.tolist(),
            table.tokens[owners[:, None], places],
        )
        self.prefixes.publish(digests, table.pages[owners, indices].tolist())

    def _preempt(self, request: Request) -> None:
        request.to(State.PREEMPTED)
        self._release(request)
        self.waiting.add(request)
        self.num_preemptions += 1
        self._crowded = True

    def _release(self, request: Request) -> None:
        slot = request.slot
        self.prefixes.unclaim(request.digests.after(int(self.table.published[slot])), slot)
        self.pages.free(self.table.remove(slot))
