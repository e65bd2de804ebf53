"""Examples to batches: first fit into a window of open batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pegboard.types import Batch, Example
from pegboard_trainer.collate import collate
from pegboard_trainer.examples import Counts, Examples, Key


@dataclass(slots=True)
class Bin:
    """A batch that is being filled. added: what lies behind the examples, and is not counted."""

    keys: list[Key] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    added: list[Example] = field(default_factory=list)
    tokens: int = 0
    sequences: int = 0

    def add(self, key: Key, example: Example, added: Sequence[Example] = ()) -> None:
        """Append an example."""
        self.keys.append(key)
        self.examples.append(example)
        self.added += added
        self.tokens += size_of(example)
        self.sequences += len(example)


@dataclass(slots=True)
class Packer:
    """Fills batches of at most `capacity` tokens and `limit` sequences (None: as many as fit).

    An example goes into the first of the open batches that has room. When none has and `window` are open, the fullest (the oldest
    of equals) is closed. Examples are never split, and the order of everything depends on the input alone.
    """

    capacity: int
    limit: int | None = None
    window: int = 8
    open: list[Bin] = field(default_factory=list)

    def add(self, key: Key, example: Example, added: Sequence[Example] = ()) -> Bin | None:
        """Place an example and what is added for it; return the batch that had to be closed for it, or that it filled."""
        size = size_of(example)
        if not self.holds(size, len(example)):
            raise ValueError(
                f"an example of {size} tokens in {len(example)} sequences does not fit into a batch of {self.capacity}"
            )
        for bin in self.open:
            if self.holds(bin.tokens + size, bin.sequences + len(example)):
                bin.add(key, example, added)
                return self._close(bin) if self._full(bin) else None
        closed = self._close(max(self.open, key=lambda b: b.tokens)) if len(self.open) >= self.window else None
        fresh = Bin()
        fresh.add(key, example, added)
        self.open.append(fresh)
        # A second batch cannot be returned; one that is full already is closed by the next call that finds no room.
        return closed if closed is not None else (self._close(fresh) if self._full(fresh) else None)

    def holds(self, tokens: int, sequences: int) -> bool:
        """Whether a batch has room for so much."""
        return tokens <= self.capacity and (self.limit is None or sequences <= self.limit)

    def flush(self) -> Bin | None:
        """Close and return the oldest open batch, or None."""
        return self._close(self.open[0]) if self.open else None

    def _full(self, bin: Bin) -> bool:
        return bin.tokens == self.capacity or bin.sequences == self.limit

    def _close(self, bin: Bin) -> Bin:
        # By identity: two bins may compare equal.
        self.open = [b for b in self.open if b is not bin]
        return bin


def size_of(example: Example) -> int:
    """Return the tokens of an example."""
    return sum(len(row.input_ids) for row in example)


class Batches:
    """Batches of the packed examples. `state` after a batch, given to `restore`, continues with exactly the next one."""

    def __init__(self, examples: Examples, packer: Packer) -> None:
        self.examples = examples
        self._packer = packer
        self._iterator: Iterator[tuple[Key, Example]] | None = None

    def __iter__(self) -> Iterator[tuple[list[Key], Batch]]:
        return self

    def __next__(self) -> tuple[list[Key], Batch]:
        """Return the keys of the examples in the next batch, and the batch."""
        return self.collated(self.next_bin())

    def collated(self, bin: Bin) -> tuple[list[Key], Batch]:
        """Return the keys of the examples in a bin, and the bin as a batch."""
        return bin.keys, collate([*bin.examples, *bin.added])

    def next_bin(self) -> Bin:
        """Return the next batch before it becomes tensors. Raises StopIteration when all epochs are over."""
        if self._iterator is None:
            self._iterator = iter(self.examples)
        for key, example in self._iterator:
            closed = self._packer.add(key, example, self.examples.added(key, example))
            if closed is not None:
                return closed
        last = self._packer.flush()
        if last is None:
            raise StopIteration
        return last

    def at(self, key: Key) -> Example:
        """Return one example again."""
        return self.examples.at(key)

    def describe(self, key: Key) -> str:
        """Return where an example stands in its file."""
        return self.examples.describe(key)

    @property
    def counts(self) -> Counts:
        """What became of the examples so far."""
        return self.examples.counts

    def state(self) -> dict[str, Any]:
        """Return the position as JSON values: the next row and the keys of the examples in open batches."""
        counts = self.examples.counts
        return {
            "next": list(self.examples.next_key),
            "open": [[list(key) for key in bin.keys] for bin in self._packer.open],
            "counts": [counts.examples, counts.tokens, counts.truncated, counts.dropped],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; open batches are read from the source again."""
        epoch, position, sub = state["next"]
        self.examples.next_key = (epoch, position, sub)
        self._packer.open = []
        for keys in state["open"]:
            bin = Bin()
            for key in (tuple(key) for key in keys):
                example = self.examples.at(key)
                bin.add(key, example, self.examples.added(key, example))
            self._packer.open.append(bin)
        counts = self.examples.counts
        counts.examples, counts.tokens, counts.truncated, counts.dropped = state["counts"]
        self._iterator = None
