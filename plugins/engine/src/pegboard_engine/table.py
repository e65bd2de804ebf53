"""The running requests as a struct of arrays: one row, a slot, each. A step reads and writes columns, not objects."""

from __future__ import annotations

import numpy as np

from pegboard_engine.request import Request

_STOP_IDS = 4


class Table:
    """What changes with every step. Arrays are indexed by slot; `running` lists the slots in use, longest there first.

    tokens: [S, L] int32, prompt and confirmed output. known: tokens, those in flight included. inflight: how many of them are.
    scheduled: leading tokens whose keys are in the cache once the steps in flight are collected; computed: those of collected steps.
    limit: length at which the request ends. reused: leading tokens that were found in the cache and are not written again.
    pages: [S, W] int32 page numbers; num_pages: how many count. published: leading pages that others may find.
    last: [S] the token at known - 1, -1 while it is in flight. drafts: proposed tokens, which stand in `tokens` behind the known ones.
    stop_ids: [K, S], -1 where unused. sync: whether the next token needs the last one known. watched: whether a token needs more than
    being counted. whole: whether nothing is told before the end. embeds: whether none is drawn. generation: grows when a slot
    changes hands. long: whether keys are those of a sequence longer than `rope_limit` (`CausalLM.rope_limit`, None for most models).
    """

    def __init__(self, num_slots: int, max_len: int, page_size: int, rope_limit: int | None = None) -> None:
        self.page_size = page_size
        self.rope_limit = rope_limit
        self.num_slots = num_slots
        self.tokens = np.zeros((num_slots, max_len), dtype=np.int32)
        self.pages = np.zeros((num_slots, -(-max_len // page_size)), dtype=np.int32)
        columns = np.zeros((11, num_slots), dtype=np.int64)
        (
            self.known,
            self.inflight,
            self.scheduled,
            self.computed,
            self.limit,
            self.num_prompt,
            self.reused,
            self.num_pages,
            self.published,
            self.generation,
            self.drafts,
        ) = columns
        self.last = np.zeros(num_slots, dtype=np.int32)
        self.adapters = np.full(num_slots, -1, dtype=np.int32)
        self.stop_ids = np.full((_STOP_IDS, num_slots), -1, dtype=np.int32)
        self.sync = np.zeros(num_slots, dtype=bool)
        self.watched = np.zeros(num_slots, dtype=bool)
        self.whole = np.zeros(num_slots, dtype=bool)
        self.embeds = np.zeros(num_slots, dtype=bool)
        self.long = np.zeros(num_slots, dtype=bool)
        self.requests = np.full(num_slots, None, dtype=object)
        self._num_stop_ids = 1
        self.num_sync = 0
        self.num_adapted = 0
        self._free = list(range(num_slots - 1, -1, -1))
        # int64, which numpy indexes with in half the time that any other integer takes.
        self._order = np.zeros(num_slots, dtype=np.int64)
        self._count = 0
        self._changes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return self._count

    @property
    def running(self) -> np.ndarray:
        """Slots in use, a view that the next `place` or `remove` invalidates."""
        return self._order[: self._count]

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return not self._free

    def request(self, slot: int) -> Request:
        """The request in a slot."""
        found: Request | None = self.requests[slot]
        assert found is not None
        return found

    def place(self, request: Request, pages: list[int], computed: int, shared: int) -> int:
        """Give a request a slot. pages: those of all its tokens; computed: leading tokens in the cache; shared: leading pages that
        were found there.
        """
        slot = self._free.pop()
        count = len(request.tokens)
        self.tokens[slot, :count] = request.tokens
        self.last[slot] = request.tokens[-1]
        self.known[slot] = count
        self.inflight[slot] = 0
        self.scheduled[slot] = self.computed[slot] = computed
        self.limit[slot] = request.limit
        self.num_prompt[slot] = request.num_prompt
        self.reused[slot] = shared * self.page_size
        self.published[slot] = shared
        self.generation[slot] += 1
        self.drafts[slot] = 0
        self.sync[slot] = request.sync
        self.watched[slot] = request.watched
        self.whole[slot] = request.options.whole
        self.embeds[slot] = request.embeds
        self.long[slot] = request.long
        self.num_sync += request.sync
        self.adapters[slot] = request.adapter
        self.num_adapted += request.adapter >= 0
        self._set_stop_ids(slot, request.stop_ids)
        self.num_pages[slot] = 0
        self.requests[slot] = request
        self.append_pages(slot, pages)
        self._order[self._count] = slot
        self._count += 1
        request.slot = slot
        return slot

    def remove(self, slot: int) -> list[int]:
        """Take a request out, with its confirmed tokens, and return its pages."""
        request = self.request(slot)
        request.tokens = self.tokens[slot, : self.confirmed(slot)].copy()
        request.slot = -1
        pages: list[int] = self.pages[slot, : self.num_pages[slot]].tolist()
        self.generation[slot] += 1
        self.num_sync -= request.sync
        self.num_adapted -= request.adapter >= 0
        self.requests[slot] = None
        kept = self.running[self.running != slot]
        self._order[: len(kept)] = kept
        self._count = len(kept)
        self._free.append(slot)
        return pages

    def confirmed(self, slot: int) -> int:
        """Tokens whose ids are known."""
        return int(self.known[slot] - self.inflight[slot])

    def append_pages(self, slot: int, pages: list[int]) -> None:
        """Add pages to a slot's row and note the change for the executor."""
        first = int(self.num_pages[slot])
        stop = first + len(pages)
        self.pages[slot, first:stop] = pages
        self.num_pages[slot] = stop
        self._changes.append((np.full(len(pages), slot), np.arange(first, stop), np.array(pages)))

    def stopped(self, slots: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return [K] bool, whether each of these slots ends with its one of `tokens` [K]."""
        # Few rows of a thousand: a comparison for each is ten times as fast as one over pairs and a reduction.
        ended = self.stop_ids[0].take(slots) == tokens
        for ids in self.stop_ids[1 : self._num_stop_ids]:
            ended |= ids.take(slots) == tokens
        return ended

    def last_pages(self, slots: np.ndarray) -> list[int]:
        """Return the last page of each slot."""
        found: list[int] = self.pages[slots, self.num_pages[slots] - 1].tolist()
        return found

    def append_page_each(self, slots: np.ndarray, pages: list[int]) -> None:
        """Add one page to each of these slots' rows."""
        columns = self.num_pages[slots]
        self.pages[slots, columns] = pages
        self.num_pages[slots] += 1
        self._changes.append((slots, columns, np.array(pages)))

    def take_changes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what changed in `pages` since the last call, as int32 arrays (slots, columns, pages)."""
        changes, self._changes = self._changes, []
        if not changes:
            empty = np.zeros(0, dtype=np.int32)
            return empty, empty, empty
        slots, columns, pages = (np.concatenate(part).astype(np.int32) for part in zip(*changes, strict=True))
        return slots, columns, pages

    def _set_stop_ids(self, slot: int, ids: tuple[int, ...]) -> None:
        height = len(self.stop_ids)
        if len(ids) > height:
            more = np.full((len(ids) - height, self.num_slots), -1, dtype=np.int32)
            self.stop_ids = np.vstack([self.stop_ids, more])
        # What a request asked for once is looked at ever after: a comparison more costs next to nothing.
        self._num_stop_ids = max(self._num_stop_ids, len(ids))
        self.stop_ids[:, slot] = -1
        self.stop_ids[: len(ids), slot] = ids
