"""What the slots add to layers that read one input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegboard_lora.rows import SETS, Block, Part, Run

if TYPE_CHECKING:
    from pegboard.types import ForwardContext


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


class Site:
    """Layers that read the same input (q, k and v, say), the members, and the factors of each slot.

    Products are computed in the factors' dtype and added in that of the output.
    """

    def __init__(self, parts: Callable[[ForwardContext], Sequence[Part]]) -> None:
        self.factors: dict[int, Factors] = {}
        self._parts = parts
        self._alone: dict[int, Stack] = {}
        self._stacks: dict[tuple[int, ...], Stack | None] = {}

    def put(self, slot: int, factors: Factors | None) -> None:
        """Fill a slot, or empty it."""
        self._stacks.clear()
        if factors is None:
            self.factors.pop(slot, None)
            self._alone.pop(slot, None)
        else:
            self.factors[slot] = factors
            self._alone[slot] = stack([factors])

    def add(self, x: Tensor, out: Tensor, ctx: ForwardContext, members: Sequence[int], starts: Sequence[int]) -> Tensor:
        """Add to each row of `out` [T, N], in place, what its slot adds: of members[i] from column starts[i]. x: [T, K]."""
        if ctx.adapter_slots is None or len(ctx.adapter_slots) != len(x):
            raise RuntimeError(
                f"an adapted layer got {len(x)} rows of a batch that has slots for another number of them"
            )
        for part in self._parts(ctx):
            if isinstance(part, Run):
                self._add_run(x, out, part, members, starts)
            else:
                self._add_block(x, out, part, members, starts)
        return out

    def _add_run(self, x: Tensor, out: Tensor, run: Run, members: Sequence[int], starts: Sequence[int]) -> None:
        factors = self.factors.get(run.slot)
        if factors is None:
            return
        rows = slice(run.start, run.stop)
        inner = torch.mm(_rows(x, rows, factors.down.dtype), factors.down.t())
        for member, start in zip(members, starts, strict=True):
            found = factors.ups[member]
            if found is None:
                continue
            columns, up = found
            target = out[rows, start : start + up.shape[1]]
            if target.dtype == up.dtype:
                target.addmm_(inner[:, columns], up)
            else:
                target.add_(torch.mm(inner[:, columns], up))

    def _add_block(self, x: Tensor, out: Tensor, block: Block, members: Sequence[int], starts: Sequence[int]) -> None:
        stacked = self._stack(block.slots)
        if stacked is None:
            return
        rows = slice(block.start, block.stop)
        own = _rows(x, rows, stacked.down.dtype)
        if block.padded:
            own = F.pad(own, (0, 0, 0, 1))
        inner = torch.bmm(own.index_select(0, block.gather).view(len(block.slots), -1, x.shape[1]), stacked.down)
        for member, start in zip(members, starts, strict=True):
            found = stacked.ups[member]
            if found is None:
                continue
            columns, up = found
            delta = torch.bmm(inner[:, :, columns], up).view(-1, up.shape[2])
            out[rows, start : start + up.shape[2]].add_(delta.index_select(0, block.back))

    def _stack(self, slots: tuple[int, ...]) -> Stack | None:
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


def _rows(x: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    own = x[rows]
    return own if own.dtype == dtype else own.to(dtype)


class RowLinear(nn.Module):
    """base(x) + what each row's slot adds (arXiv:2311.03285 has the idea). member: which of the site's it is."""

    additive = True

    def __init__(self, base: nn.Module, site: Site, member: int) -> None:
        super().__init__()
        self.base = base
        self.site = site
        self.member = member
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        return self._add([self], x, self.base(x, ctx), [0], ctx)

    def delta(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor | None:
        """[T, in_features] -> what is added to the base's output, [T, out_features]; None where no row has a slot."""
        if ctx is None or ctx.adapter_slots is None:
            return None
        return self._add([self], x, x.new_zeros(x.shape[0], self.out_features), [0], ctx)

    @classmethod
    def group_forward(
        cls,
        modules: Sequence[RowLinear],
        x: Tensor,
        base: Callable[[Tensor], Tensor],
        starts: Sequence[int],
        ctx: ForwardContext | None = None,
    ) -> Tensor:
        """Return base(x) with what modules of one site add, module i to the columns from starts[i]."""
        return cls._add(modules, x, base(x), starts, ctx)

    @classmethod
    def _add(
        cls,
        modules: Sequence[RowLinear],
        x: Tensor,
        out: Tensor,
        starts: Sequence[int],
        ctx: ForwardContext | None = None,
    ) -> Tensor:
        """Add to `out` in place for modules of one site, module i to the columns from starts[i]."""
        if ctx is None or ctx.adapter_slots is None:
            return out
        return modules[0].site.add(x, out, ctx, [module.member for module in modules], starts)
