"""Which steps are captured, and when: never on the way of a first token, and a few at a time while others are served."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_SEEN = 2
_PADDED = 16
_APART = 8
_MOST_ROWS = 256
"""Rows of a captured step whose sequences have several: with more, the device computes for longer than the host needs to ask for it."""
_SPARSE = 1.3


def captured_rows(num_slots: int, queries: int) -> int:
    """Return the most rows of a captured step over so many sequences, each with up to `queries` new tokens."""
    return max(num_slots, min(num_slots * queries, _MOST_ROWS))


class Buckets:
    """Sizes of captured steps, in rows, and when the next one is due.

    A batch is served by the least captured size that holds it. A size that nothing captured holds is due when it has come for the
    third time; one that a larger size serves when that has happened so often that the padding may have cost more than capturing does.
    Between two captures lie some steps, so that none of those who wait for tokens sees many in a row.

    sizes: ascending. done: those that were captured.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self.sizes = sorted(set(sizes))
        self.done: set[int] = set()
        self._seen = dict.fromkeys(self.sizes, 0)
        self._since = _APART

    @classmethod
    def up_to(cls, most: int, round_up: Callable[[int], int], *, sparse: bool = False) -> Buckets:
        """Return those for 1 to `most` rows. round_up: the platform's size for a number of sequences. sparse: each a good part larger than
        the one before, for steps that are less common, since each size keeps memory for its logits.
        """
        sizes = sorted({min(round_up(count), most) for count in range(1, most + 1)})
        if not sparse:
            return cls(sizes)
        kept: list[int] = []
        for size in sizes:
            if not kept or size == most or size >= _SPARSE * kept[-1]:
                kept.append(size)
        return cls(kept)

    def size(self, count: int) -> int | None:
        """Return the size that `count` sequences want; None where they are too many."""
        return next((size for size in self.sizes if size >= count), None)

    def serving(self, count: int) -> int | None:
        """Note a step of `count` sequences, and return the captured size that serves it."""
        self._since += 1
        wanted = self.size(count)
        if wanted is None:
            return None
        self._seen[wanted] += 1
        return min((size for size in self.done if size >= count), default=None)

    def due(self) -> int | None:
        """Return a size to capture now, between two steps."""
        if self._since < _APART and self.done:
            return None
        for size, seen in self._seen.items():
            if size not in self.done and seen > (_PADDED if self._covered(size) else _SEEN):
                self._since = 0
                return size
        return None

    def next(self) -> int | None:
        """Return what to capture while there is nothing to do: powers of two first, then what lies between."""
        left = [size for size in self.sizes if size not in self.done]
        return min(left, key=lambda size: (size & (size - 1) != 0, size), default=None)

    def _covered(self, size: int) -> bool:
        return any(size < other <= 2 * size + 8 for other in self.done)
