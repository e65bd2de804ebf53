"""Where the batches of a run come from: packed data, or whatever a recipe makes of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from pegboard.types import Batch, Row
from pegboard_trainer.ahead import Ahead
from pegboard_trainer.examples import Key
from pegboard_trainer.packer import Batches


class BatchSource(Protocol):
    """Batches one by one, `batch.accumulate` of them for a step. All data-parallel ranks hand out equally many.

    A batch is asked for between two steps, with the weights that the last one left. Optional further methods:
    `metrics() -> {name: (sum, count)}`, of what happened since the last call, taken whenever a step is logged;
    `evaluate() -> {name: number}`, measured in the place of the objective on held-out data;
    `prepare()`, called after each step, when the device has work for a while: what comes next may be made on the host.
    """

    def __next__(self) -> tuple[list[Key], Batch]:
        """Return keys of the examples in the next batch, and the batch. Raises StopIteration at the end."""

    def state(self) -> dict[str, Any]:
        """Return the position as JSON values."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what must be kept beside `state`: what was sampled and is not used up yet, say. Each rank keeps its own."""

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue with exactly the batch that followed when `state` and `tensors` were taken."""

    def at(self, key: Key) -> Sequence[Row]:
        """Return the sequences of one example again."""

    def describe(self, key: Key) -> str:
        """Return where an example comes from."""

    def summary(self) -> str:
        """Return a line for people, of the data used so far."""


def take(source: BatchSource, count: int) -> list[tuple[list[Key], Batch]]:
    """Return the next `count` batches, or those that are left."""
    taken = []
    for _ in range(count):
        try:
            taken.append(next(source))
        except StopIteration:
            break
    return taken


class Packed:
    """The batches that the packer makes of the run's data: of each `size` in turn this rank has the one numbered `rank`.

    Every rank follows the same global order, so that any number of ranks sees the same batches and continues from the same
    position. Where the last round is not full, a rank without a batch gets one with no keys, which counts for nothing.
    """

    def __init__(self, batches: Batches | Ahead, rank: int = 0, size: int = 1) -> None:
        self._batches, self._rank, self._size = batches, rank, size

    def __iter__(self) -> Packed:
        return self

    def __next__(self) -> tuple[list[Key], Batch]:
        """Return this rank's batch of the next round."""
        round_ = []
        for _ in range(self._size):
            try:
                round_.append(self._batches.next_bin())
            except StopIteration:
                break
        if not round_:
            raise StopIteration
        mine = round_[self._rank] if self._rank < len(round_) else None
        keys, batch = self._batches.collated(mine or round_[0])
        return (keys if mine is not None else []), batch

    def prepare(self) -> None:
        """Let batches be made ahead."""
        if isinstance(self._batches, Ahead):
            self._batches.prepare()

    def state(self) -> dict[str, Any]:
        """Return the position in the data."""
        return self._batches.state()

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing: batches are read from the data again."""
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue behind a position."""
        self._batches.restore(dict(state))

    def at(self, key: Key) -> Sequence[Row]:
        """Return one example again."""
        return self._batches.at(key)

    def describe(self, key: Key) -> str:
        """Return where an example stands in its file."""
        return self._batches.describe(key)

    def summary(self) -> str:
        """Return how many examples were used, cut and left out."""
        return f"data: {self._batches.counts.line()}"
