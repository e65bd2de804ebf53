"""From raw rows to examples, in an order that depends on nothing but the seed and the position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pegboard.errors import DataError
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.interfaces.transform import Transform
from pegboard.types import Example, Row
from pegboard_trainer.feed import Feed, Load, Place

NEIGHBOURS = 8
"""Rows on either side in which an example's neighbours are looked for."""

Key = tuple[int, int, int]
"""Where an example comes from: epoch, position in that epoch, number within the row."""


@dataclass(slots=True)
class Counts:
    """What became of the examples so far. tokens: of the examples kept, after truncation."""

    examples: int = 0
    tokens: int = 0
    truncated: int = 0
    dropped: int = 0

    def line(self) -> str:
        """Return the counts for people."""
        return f"{self.examples:,} examples, {self.tokens:,} tokens, {self.truncated:,} cut to length, {self.dropped:,} left out"


@dataclass(frozen=True, slots=True)
class Limits:
    """The longest sequence in tokens, what becomes of longer ones, and how many sequences of that length a batch holds."""

    length: int
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    sequences: int | None = None


@dataclass(slots=True)
class Examples:
    """Endless examples, epoch after epoch. `next_key` is where the next one comes from; setting it continues from there."""

    feed: Feed
    tokenizer: Tokenizer
    limits: Limits
    epochs: float | None = None
    counts: Counts = field(default_factory=Counts)
    next_key: Key = (0, 0, 0)
    _recent: dict[tuple[int, int], Sequence[Example]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Key, Example]]:
        """Yield (key, example) from `next_key` until `epochs` are over. Raises DataError when the first epoch holds no example."""
        while self.epochs is None or self.next_key[0] < self.epochs:
            epoch, position, sub = self.next_key
            found = (epoch, position, sub) != (0, 0, 0)
            stop = self._stop(epoch)
            for at, place, load in self.feed.read(epoch, position):
                if stop is not None and at >= stop:
                    break
                # A row that a restored position lies in was counted before.
                examples = self._examples(place, load, self.counts if not sub else Counts())
                self._remember(epoch, at, examples)
                for number, example in list(enumerate(examples))[sub:]:
                    self.next_key = (epoch, at, number + 1)
                    found = True
                    yield (epoch, at, number), example
                sub = 0
                self.next_key = (epoch, at + 1, 0)
            self.feed.flush()
            if not found:
                raise DataError(
                    f"no row of the data can be used: {self.counts.line()}",
                    fix="check batch.length, batch.overlong and data.format",
                )
            self.next_key = (epoch + 1, 0, 0)

    @property
    def rows(self) -> int | None:
        """The number of rows of an epoch, None where the source does not know it."""
        return self.feed.rows

    def at(self, key: Key) -> Example:
        """Return one example again; counts are not touched."""
        epoch, position, sub = key
        return self.of(epoch, position)[sub]

    def of(self, epoch: int, position: int) -> Sequence[Example]:
        """Return the examples of one row; counts are not touched."""
        _, place, load = next(self.feed.read(epoch, position))
        return self._examples(place, load, Counts())

    def describe(self, key: Key) -> str:
        """Return where an example stands in its file."""
        return self.feed.describe(self.feed.place(key[0], key[1]))

    def added(self, key: Key, example: Example) -> Sequence[Example]:
        """Return what the transform makes of an example and its neighbours: the same for a key, whatever batch it comes into."""
        transform = self.feed.parts[0].transform
        if type(transform).complete is Transform.complete:
            return ()
        return transform.complete(example, self._neighbours(key))

    def _neighbours(self, key: Key) -> Iterator[Example]:
        """Yield the examples before one in its epoch, from a few rows, nearest first; at its beginning those behind it too."""
        epoch, position, sub = key
        yield from reversed(self._recent_row(epoch, position)[:sub])
        for at in range(position - 1, max(position - NEIGHBOURS, 0) - 1, -1):
            yield from reversed(self._recent_row(epoch, at))
        yield from self._recent_row(epoch, position)[sub + 1 :]
        if position < NEIGHBOURS:
            for at in range(position + 1, position + NEIGHBOURS):
                yield from self._recent_row(epoch, at)

    def _recent_row(self, epoch: int, position: int) -> Sequence[Example]:
        """Return the examples of a row, none of one behind the last; read again where it is not among those read last."""
        found = self._recent.get((epoch, position))
        if found is None:
            row = next(iter(self.feed.read(epoch, position)), None)
            found = [] if row is None else self._examples(row[1], row[2], Counts())
            self._remember(epoch, position, found)
        return found

    def _remember(self, epoch: int, position: int, examples: Sequence[Example]) -> None:
        self._recent[epoch, position] = examples
        while len(self._recent) > 2 * NEIGHBOURS:
            del self._recent[next(iter(self._recent))]

    def _stop(self, epoch: int) -> int | None:
        """Return the position at which an epoch ends early, since `epochs` is not whole."""
        if self.epochs is None or self.feed.rows is None or epoch + 1 <= self.epochs:
            return None
        return round(self.feed.rows * (self.epochs - epoch))

    def _examples(self, place: Place, load: Load, counts: Counts) -> Sequence[Example]:
        part, index = place
        made = self.feed.parts[part].examples(index, load, self.tokenizer)
        try:
            fitted = [fit(example, self.limits, counts) for example in made]
        except DataError as error:
            raise DataError(f"{self.feed.describe(place)}: {error.message}", fix=error.fix) from error
        return [example for example in fitted if example is not None]


def fit(example: Example, limits: Limits, counts: Counts) -> Example | None:
    """Return the example with no sequence above the longest length, or None when something in it cannot be learned then.

    Raises DataError for one that is too long where that is an error, and for more sequences than a batch is sure to hold.
    """
    if limits.sequences is not None and len(example) > limits.sequences:
        raise DataError(
            f"an example of {len(example)} sequences does not fit into a batch of batch.size={limits.sequences}",
            fix=f"set batch.size={len(example)} or more (with a smaller batch.length, if memory is short)",
        )
    longest = max(len(row.input_ids) for row in example)
    if longest > limits.length:
        if limits.overlong == "error":
            raise DataError(
                f"{longest} tokens, batch.length is {limits.length}",
                fix="raise batch.length, or set batch.overlong to truncate or drop",
            )
        # A prompt without its end asks for something else.
        if limits.overlong == "drop" or any(row.part == "prompt" for row in example):
            counts.dropped += 1
            return None
        example = tuple(_cut(row, limits.length) for row in example)
        counts.truncated += 1
    if not all(row.part == "prompt" or any(row.mask[1:]) for row in example):
        counts.dropped += 1
        return None
    counts.examples += 1
    counts.tokens += sum(len(row.input_ids) for row in example)
    return example


def _cut(row: Row, length: int) -> Row:
    per_token = {name: values[:length] for name, values in row.per_token.items()}
    return replace(row, input_ids=row.input_ids[:length], mask=row.mask[:length], per_token=per_token)
