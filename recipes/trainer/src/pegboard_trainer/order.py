"""In which order rows come: a permutation for each epoch, and whose turn it is in a mix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from pegboard.errors import ConfigError, DataError

CYCLE = 1000
"""Rows after which the pattern of a weighted mix repeats, unless its weights have a common divisor."""


class Orders:
    """The order of some rows in each epoch. The last two are remembered: batches reach back into the epoch before."""

    def __init__(self, indices: Tensor, seed: int, *, shuffle: bool) -> None:
        self._indices, self._seed, self._shuffle = indices, seed, shuffle
        self._known: dict[int, Tensor] = {}

    def of(self, epoch: int) -> Tensor:
        """Return the indices in the order of an epoch."""
        if epoch not in self._known:
            self._known = dict(islice(reversed(self._known.items()), 1))
            self._known[epoch] = epoch_order(self._indices, epoch, self._seed, shuffle=self._shuffle)
        return self._known[epoch]

    def at(self, taken: int) -> int:
        """Return the index that comes after `taken` others, epochs counted together."""
        epoch, position = divmod(taken, len(self._indices))
        return int(self.of(epoch)[position])


def epoch_order(indices: Tensor, epoch: int, seed: int, *, shuffle: bool) -> Tensor:
    """Return the row indices of an epoch in their order: a permutation that is the same for the same seed and epoch."""
    if not shuffle:
        return indices
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) & (2**63 - 1))
    return indices[torch.randperm(len(indices), generator=generator)]


def split_rows(count: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of training and validation rows, each in file order. held_out: a share below 1, or a number of rows.

    Raises DataError when either part would be empty.
    """
    wanted = round(count * held_out) if held_out < 1 else int(held_out)
    if wanted < 1 or wanted >= count:
        raise DataError(
            f"data.validation={held_out:g} of {count} rows leaves one part empty",
            fix="choose a share between, or a path",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[wanted:].sort().values, order[:wanted].sort().values


def spread(weights: Sequence[float]) -> list[int]:
    """Return whose turn it is in each slot of a cycle: as many slots each as its weight says, as far apart as possible.

    Raises ConfigError where a weight is not positive, or so small that it has no slot.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights] if total > 0 else [0.0]
    if min(shares) * CYCLE < 1:
        raise ConfigError(
            f"the weights of data.mix are {', '.join(f'{w:g}' for w in weights)}",
            fix="give positive numbers, each at least a thousandth of their sum",
        )
    whole = (n for n in range(1, CYCLE) if all(abs(s * n - round(s * n)) < 1e-9 for s in shares))
    due = [0.0] * len(shares)
    slots = []
    for _ in range(next(whole, CYCLE)):
        due = [have + share for have, share in zip(due, shares, strict=True)]
        # Rounded, so that equal weights do not take turns by the last bit of a sum.
        turn = max(range(len(due)), key=lambda i: round(due[i], 9))
        due[turn] -= 1
        slots.append(turn)
    return slots
