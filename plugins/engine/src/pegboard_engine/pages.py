"""Pages of the cache: who holds which. Knows numbers only, no tensors and no requests."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


class OutOfPages(Exception):
    """Fewer pages are free than were asked for; nothing was taken."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Pages held by an outside party until `expires` (seconds of the pool's clock)."""

    id: int
    pages: tuple[int, ...]
    expires: float


class PagePool:
    """Pages 1 … num_pages - 1, each free or held by a number of holders. Page 0 is reserved and never handed out.

    The free pages are a doubly linked list in two arrays, so that any page can be taken out in O(1): the page after a request's last
    one is preferred, since backends read consecutive pages without a copy.
    """

    def __init__(self, num_pages: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if num_pages < 2:
            raise ValueError(f"a pool of {num_pages} pages has none to give: page 0 is reserved")
        self.num_pages = num_pages
        self.num_free = num_pages - 1
        self._clock = clock
        self._holders = array("q", bytes(8 * num_pages))
        # Page 0 is the list's anchor: next[0] is the first free page, previous[0] the last.
        self._next = array("q", [*range(1, num_pages), 0])
        self._previous = array("q", [num_pages - 1, *range(num_pages - 1)])
        self._leases: dict[int, Lease] = {}
        self._last_lease = 0

    @property
    def num_held(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - 1 - self.num_free

    def allocate(self, count: int, after: int = 0) -> list[int]:
        """Take `count` pages, by preference those that follow page `after`. Raises OutOfPages and takes none when too few are free."""
        if count > self.num_free:
            raise OutOfPages(f"{count} pages wanted, {self.num_free} free")
        taken = []
        holders, last = self._holders, self.num_pages - 1
        for _ in range(count):
            page = after + 1 if 0 < after < last and not holders[after + 1] else self._next[0]
            self._unlink(page)
            holders[page] = 1
            taken.append(page)
            after = page
        self.num_free -= count
        return taken

    def free(self, pages: Sequence[int]) -> None:
        """Give up one hold on each page; a page nobody holds any more is free. Raises RuntimeError for a page that is not held."""
        for page in reversed(pages):
            if not 0 < page < self.num_pages or not self._holders[page]:
                raise RuntimeError(f"page {page} is not held, so it cannot be freed")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._link_first(page)
                self.num_free += 1

    def lease(self, pages: Iterable[int], ttl: float) -> Lease:
        """Hold pages for an outside party for at most `ttl` seconds. Raises RuntimeError for a page that nobody holds."""
        kept = tuple(pages)
        for page in kept:
            if not 0 < page < self.num_pages or not self._holders[page]:
                raise RuntimeError(f"page {page} is not held, so it cannot be leased")
        for page in kept:
            self._holders[page] += 1
        self._last_lease += 1
        lease = Lease(self._last_lease, kept, self._clock() + ttl)
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

    def _unlink(self, page: int) -> None:
        before, behind = self._previous[page], self._next[page]
        self._next[before] = behind
        self._previous[behind] = before

    def _link_first(self, page: int) -> None:
        first = self._next[0]
        self._next[0], self._previous[page] = page, 0
        self._next[page], self._previous[first] = first, page
