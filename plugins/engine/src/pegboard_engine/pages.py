"""Pages of the cache: who holds which, and which free one is given out next. Knows numbers only, no tensors and no requests."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class OutOfPages(Exception):
    """Fewer pages are free than were asked for; nothing was taken."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Pages held by an outside party until `expires` (seconds of the pool's clock)."""

    id: int
    pages: tuple[int, ...]
    expires: float


class FreeOrder(Protocol):
    """In which order free pages are given out; a page whose content is worth keeping should come late."""

    def take(self, after: int) -> int:
        """Take a page out and return it; the one that follows page `after` where nothing is lost by that."""

    def take_each(self, after: Sequence[int]) -> list[int]:
        """Take a page for each of `after`, as `take` does."""

    def remove(self, page: int) -> None:
        """Take this page out, because somebody wants its content."""

    def give(self, page: int, *, kept: bool) -> None:
        """Put a page in. kept: its content may be found again."""


class LeastRecent:
    """Pages without content first, then those that were given back longest ago.

    A doubly linked list in two arrays: every operation is O(1), and no object is made for a page. Page 0 is its anchor.
    """

    def __init__(self, num_pages: int) -> None:
        self._last = num_pages - 1
        self._next = array("i", [*range(1, num_pages), 0])
        self._previous = array("i", [num_pages - 1, *range(num_pages - 1)])
        # 1: free and empty, 2: free and kept, 0: not here.
        self._state = bytearray(b"\x00" + b"\x01" * (num_pages - 1))

    def take(self, after: int) -> int:
        """O(1). Consecutive pages are preferred among the empty ones, since they can be read without a copy."""
        page = after + 1
        if not (0 < after < self._last and self._state[page] == 1):
            page = self._next[0]
        self.remove(page)
        return page

    def take_each(self, after: Sequence[int]) -> list[int]:
        # As `take` and `remove`, for what many sequences need in one step.
        state, following, previous, last, taken = self._state, self._next, self._previous, self._last, []
        for page in after:
            page = page + 1 if 0 < page < last and state[page + 1] == 1 else following[0]
            before, behind = previous[page], following[page]
            following[before], previous[behind] = behind, before
            state[page] = 0
            taken.append(page)
        return taken

    def remove(self, page: int) -> None:
        before, behind = self._previous[page], self._next[page]
        self._next[before], self._previous[behind] = behind, before
        self._state[page] = 0

    def give(self, page: int, *, kept: bool) -> None:
        self._state[page] = 2 if kept else 1
        before = self._previous[0] if kept else 0
        behind = self._next[before]
        self._next[before] = self._previous[behind] = page
        self._previous[page], self._next[page] = before, behind


class PagePool:
    """Pages 1 … num_pages - 1, each free or held by a number of holders. Page 0 is reserved and never handed out.

    A free page may keep content that the prefix cache can find again (`keep`); when it is given out for something else, `on_evict`
    is told before.
    """

    def __init__(
        self, num_pages: int, *, order: FreeOrder | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if num_pages < 2:
            raise ValueError(f"a pool of {num_pages} pages has none to give: page 0 is reserved")
        self.num_pages = num_pages
        self.num_free = num_pages - 1
        self.num_kept = 0
        self.on_evict: Callable[[int], None] | None = None
        self._order: FreeOrder = order or LeastRecent(num_pages)
        self._clock = clock
        self._holders = array("i", bytes(4 * num_pages))
        self._kept = bytearray(num_pages)
        self._leases: dict[int, Lease] = {}
        self._last_lease = 0

    @property
    def num_held(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - 1 - self.num_free

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def allocate(self, count: int, after: int = 0) -> list[int]:
        """Take `count` pages, by preference those that follow page `after`. Raises OutOfPages and takes none when too few are free."""
        if count > self.num_free:
            raise OutOfPages(f"{count} pages wanted, {self.num_free} free")
        taken = []
        for _ in range(count):
            after = self._take(after)
            taken.append(after)
        self.num_free -= count
        return taken

    def allocate_each(self, after: Sequence[int]) -> list[int]:
        """Take a page for each of `after`, by preference the one that follows it. Raises OutOfPages as `allocate` does."""
        if len(after) > self.num_free:
            raise OutOfPages(f"{len(after)} pages wanted, {self.num_free} free")
        taken = self._order.take_each(after)
        kept, holders = self._kept, self._holders
        for page in taken:
            if kept[page]:
                self._lose(page)
            holders[page] = 1
        self.num_free -= len(taken)
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """Add a holder to each page, which is held or keeps content. Raises RuntimeError for a page of which neither is true."""
        for page in pages:
            if not self._holders[page]:
                if not self._kept[page]:
                    raise RuntimeError(f"page {page} is neither held nor kept, so its content is gone")
                self._order.remove(page)
                self.num_free -= 1
                self.num_kept -= 1
            self._holders[page] += 1

    def free(self, pages: Sequence[int]) -> None:
        """Give up one hold on each page; a page nobody holds any more is free. Raises RuntimeError for a page that is not held.

        The last of `pages` is given out again first: the beginning of a sequence is what others may share.
        """
        for page in reversed(pages):
            self._must_be_held(page, "freed")
            self._holders[page] -= 1
            if not self._holders[page]:
                kept = bool(self._kept[page])
                self.num_free += 1
                self.num_kept += kept
                self._order.give(page, kept=kept)

    def keep(self, pages: Iterable[int]) -> None:
        """Say that the content of held pages may be found again. Raises RuntimeError for a page that nobody holds."""
        for page in pages:
            self._must_be_held(page, "kept")
            self._kept[page] = 1

    def forget(self, page: int) -> None:
        """Say that the content of a page will not be looked for any more."""
        if self._kept[page]:
            self._forget(page)
            if not self._holders[page]:
                self._order.remove(page)
                self._order.give(page, kept=False)

    def lease(self, pages: Iterable[int], ttl: float) -> Lease:
        """Hold pages for an outside party for at most `ttl` seconds. Raises RuntimeError for a page that nobody holds."""
        leased = tuple(pages)
        for page in leased:
            self._must_be_held(page, "leased")
        self.hold(leased)
        self._last_lease += 1
        lease = Lease(self._last_lease, leased, self._clock() + ttl)
        self._leases[lease.id] = lease
        return lease

    def end_lease(self, lease: Lease) -> None:
        """Give leased pages back. A lease that ended already is ignored."""
        if self._leases.pop(lease.id, None) is not None:
            self.free(lease.pages)

    def expire_leases(self) -> int:
        """End the leases whose time is over and return how many there were."""
        if not self._leases:
            return 0
        now = self._clock()
        over = [lease for lease in self._leases.values() if lease.expires <= now]
        for lease in over:
            self.end_lease(lease)
        return len(over)

    def end_all_leases(self) -> None:
        """End every lease, as on shutdown."""
        for lease in list(self._leases.values()):
            self.end_lease(lease)

    def _take(self, after: int) -> int:
        page = self._order.take(after)
        if self._kept[page]:
            self._lose(page)
        self._holders[page] = 1
        return page

    def _lose(self, page: int) -> None:
        self._forget(page)
        if self.on_evict is not None:
            self.on_evict(page)

    def _forget(self, page: int) -> None:
        self._kept[page] = 0
        if not self._holders[page]:
            self.num_kept -= 1

    def _must_be_held(self, page: int, verb: str) -> None:
        if not 0 < page < self.num_pages or not self._holders[page]:
            raise RuntimeError(f"page {page} is not held, so it cannot be {verb}")
