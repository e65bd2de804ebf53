"""Back-pressure: how much may be in the server at once, and when to come again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from pegboard_server.errors import ApiError

REMEMBERED = 256
"""Ended prompts that the rate is taken from."""

LONGEST = 120
"""Seconds; nobody is sent away for longer."""


class Admission:
    """Counts prompts from their admission to the end of their answers. capacity: how many may be here at once."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.inside = 0
        self._ends: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    @contextmanager
    def admit(self, prompts: int) -> Iterator[None]:
        """Hold a place for `prompts` prompts. Raises ApiError (429, with Retry-After) when there is none.

        A request of more prompts than the capacity is let in when nothing else is here, since it could never be otherwise.
        """
        if self.inside and self.inside + prompts > self.capacity:
            raise ApiError(
                429,
                f"{self.inside} prompts are here already, and at most {self.capacity} may be",
                code="queue_full",
                headers={"retry-after": str(self.retry_after(prompts))},
            )
        self.inside += prompts
        try:
            yield
        finally:
            self.inside -= prompts
            self._ends.append((time.monotonic(), prompts))

    def retry_after(self, prompts: int) -> int:
        """Return the seconds until so many places are free, at the rate at which prompts ended lately."""
        excess = min(self.inside, self.inside + prompts - self.capacity)
        if len(self._ends) < 2:
            return 1
        now = time.monotonic()
        span = max(now - self._ends[0][0], 1e-3)
        rate = sum(count for _, count in self._ends) / span
        return min(max(math.ceil(excess / rate), 1), LONGEST)
