"""How many batches there are, by reading all rows or some of them."""

from __future__ import annotations

from dataclasses import replace

from pegboard_trainer.examples import Counts, Examples
from pegboard_trainer.packer import Batches, Bin, Packer


def count_batches(batches: Batches) -> int:
    """Return how many batches there are; reads and tokenizes everything once."""
    count = 0
    try:
        while True:
            batches.next_bin()
            count += 1
    except StopIteration:
        return count


def estimate_batches(examples: Examples, packer: Packer, sample: int) -> float:
    """Return about how many batches an epoch gives, from `sample` of its rows, evenly apart, that are packed as training does.

    A batch that was not full when the sample ended counts for what it holds. The rows of the source must be known.
    """
    rows = examples.rows or 0
    taken = replace(examples, counts=Counts(), epochs=None)
    closed: list[Bin] = []
    for number in range(sample):
        position = rows * number // sample
        for sub, example in enumerate(taken.of(0, position)):
            full = packer.add((0, position, sub), example)
            closed += [full] if full is not None else []
    typical = sum(bin.tokens for bin in closed) / len(closed) if closed else float(packer.capacity)
    left = sum(bin.tokens for bin in packer.open) / typical
    return (len(closed) + left) * rows / sample
