"""The factors of the adapters in the slots of layers that read one input: as tensors, and as a table of where those lie."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pegboard_lora.rows import SETS

HEAD, EACH = 2, 3
"""Numbers of a slot's record in `Bank.table`: address of `down` and its ranks; of each member address of its up, first rank and ranks."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Of one adapter, for the members of a site. down: [R, K], the A of all members one below the other.

    ups: for each member B^T times its scaling, [r, n], and the columns of x down^T that it reads; None where nothing is added.
    """

    down: Tensor
    ups: Sequence[tuple[slice, Tensor] | None]


@dataclass(frozen=True, slots=True)
class Stack:
    """The same of S slots side by side: down [S, K, R], each member's rank being the highest of any slot; ups [S, r, n]."""

    down: Tensor
    ups: Sequence[tuple[slice, Tensor] | None]


def make_factors(pairs: Sequence[tuple[Tensor, Tensor] | None]) -> Factors:
    """Return factors from (A [r, K], B^T [r, n]) of each member, of which at least one is there."""
    ups: list[tuple[slice, Tensor] | None] = []
    start = 0
    for pair in pairs:
        if pair is None:
            ups.append(None)
            continue
        rank = pair[0].shape[0]
        ups.append((slice(start, start + rank), pair[1].contiguous()))
        start += rank
    return Factors(torch.cat([pair[0] for pair in pairs if pair is not None]), ups)


def stack(found: Sequence[Factors | None]) -> Stack:
    """Return the factors of several slots side by side, zeros where a slot has none."""
    present = [factors for factors in found if factors is not None]
    first = present[0].down
    if len(found) == 1:
        return Stack(first.t()[None], [None if up is None else (up[0], up[1][None]) for up in present[0].ups])
    ups: list[tuple[slice, Tensor] | None] = []
    start = 0
    pieces = []
    for member in range(len(present[0].ups)):
        pairs = [None if factors is None else factors.ups[member] for factors in found]
        rank = max((pair[1].shape[0] for pair in pairs if pair is not None), default=0)
        if not rank:
            ups.append(None)
            continue
        width = next(pair[1].shape[1] for pair in pairs if pair is not None)
        down, up = first.new_zeros(len(found), rank, first.shape[1]), first.new_zeros(len(found), rank, width)
        for index, pair in enumerate(pairs):
            factors = found[index]
            if pair is not None and factors is not None:
                own = pair[1].shape[0]
                down[index, :own] = factors.down[pair[0]]
                up[index, :own] = pair[1]
        pieces.append(down)
        ups.append((slice(start, start + rank), up))
        start += rank
    return Stack(torch.cat(pieces, 1).transpose(1, 2), ups)


class Tabled:
    """Where the factors of each slot lie, told to the device that has them.

    max_rank: the highest rank of any adapter. outputs: columns of each member. table: [num_slots, HEAD + EACH * members] int64 beside
    the factors, see `HEAD`, zeros for an empty slot; it is made when the first slot is filled, and written in place from then on, behind
    what was given to the device before: so work that is captured finds what the slots hold when it runs. kept: what an implementation of
    the ops made for these layers, whatever the slots hold.
    """

    def __init__(self, num_slots: int, outputs: Sequence[int], max_rank: int) -> None:
        self.num_slots = num_slots
        self.outputs = tuple(outputs)
        self.max_rank = max_rank
        self.table: Tensor | None = None
        self.kept: dict[Hashable, Any] = {}

    def _tell(self, slot: int, record: Sequence[int], device: torch.device) -> None:
        if self.table is None:
            size = (self.num_slots, HEAD + EACH * len(self.outputs))
            self.table = torch.zeros(size, dtype=torch.int64, device=device)
        self.table[slot].copy_(torch.tensor(record))

    def _tell_empty(self, slot: int) -> None:
        if self.table is not None:
            self.table[slot].zero_()


class Bank(Tabled):
    """The factors of each slot for layers that read one input, in one dtype on one device. inputs: K."""

    def __init__(self, num_slots: int, inputs: int, outputs: Sequence[int], max_rank: int) -> None:
        super().__init__(num_slots, outputs, max_rank)
        self.inputs = inputs
        self.factors: dict[int, Factors] = {}
        self._alone: dict[int, Stack] = {}
        self._stacks: dict[tuple[int, ...], Stack | None] = {}

    @property
    def dtype(self) -> torch.dtype | None:
        """Of all factors; None where every slot is empty."""
        return next((factors.down.dtype for factors in self.factors.values()), None)

    def put(self, slot: int, factors: Factors | None) -> None:
        """Fill a slot, or empty it."""
        self._stacks.clear()
        if factors is None:
            if self.factors.pop(slot, None) is not None:
                self._tell_empty(slot)
            self._alone.pop(slot, None)
            return
        self.factors[slot] = factors
        self._alone[slot] = stack([factors])
        self._tell(slot, _record(factors), factors.down.device)

    def stack(self, slots: tuple[int, ...]) -> Stack | None:
        """Return the factors of some slots side by side, of which the last few sets are kept; None where all are empty."""
        if len(slots) == 1:
            return self._alone.get(slots[0])
        if slots in self._stacks:
            made = self._stacks.pop(slots)
        else:
            found = [self.factors.get(slot) for slot in slots]
            made = stack(found) if any(factors is not None for factors in found) else None
            if len(self._stacks) >= SETS:
                del self._stacks[next(iter(self._stacks))]
        self._stacks[slots] = made
        return made

    def tensors(self) -> list[Tensor]:
        """Return all factors that are held, side by side or not; some share memory."""
        held: list[Factors | Stack] = [*self.factors.values(), *self._alone.values()]
        held += [one for one in self._stacks.values() if one is not None]
        return [tensor for one in held for tensor in (one.down, *(up[1] for up in one.ups if up is not None))]


class EmbeddingBank(Tabled):
    """The factors of each slot for a table of embeddings: (A^T [V, r], B^T times its scaling [r, H]) of one dtype on one device."""

    def __init__(self, num_slots: int, columns: int, max_rank: int) -> None:
        super().__init__(num_slots, (columns,), max_rank)
        self.factors: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def dtype(self) -> torch.dtype | None:
        """Of all factors; None where every slot is empty."""
        return next((down.dtype for down, _ in self.factors.values()), None)

    def put(self, slot: int, pair: tuple[Tensor, Tensor] | None) -> None:
        """Fill a slot with A [r, V] and B^T [r, H], or empty it."""
        if pair is None:
            if self.factors.pop(slot, None) is not None:
                self._tell_empty(slot)
            return
        # By id, so that what a token reads lies together.
        down, up = pair[0].t().contiguous(), pair[1].contiguous()
        self.factors[slot] = down, up
        self._tell(slot, [down.data_ptr(), len(up), up.data_ptr(), 0, len(up)], down.device)


def _record(factors: Factors) -> list[int]:
    record = [factors.down.data_ptr(), factors.down.shape[0]]
    for found in factors.ups:
        record += [0, 0, 0] if found is None else [found[1].data_ptr(), found[0].start, found[1].shape[0]]
    return record
