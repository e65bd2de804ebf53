"""Kind `source`: where training rows come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any


class Source(ABC):
    """A finite or endless, ordered, resumable list of raw rows. Constructed with the validated options of its schema."""

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (index, row) from row `start` on, in an order that is the same every time.

        Raises DataError naming file, line and field of a bad row.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return where row `index` stands for an error message, such as "pairs.jsonl, line 1000"."""

    def fingerprint(self) -> str | None:
        """Return a hash of the content of all rows, under which what is made of them may be kept; None where it is not known."""
        return None


class IndexedSource(Source):
    """A finite source whose rows can be read in any order: only such a one is shuffled, and split into training and validation."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """Return row `index`. Raises DataError naming file, line and field of a bad row."""
