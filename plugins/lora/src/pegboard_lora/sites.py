"""Layers that read one input, with what the slots add to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from pegboard_lora.bank import Bank, EmbeddingBank
from pegboard_lora.rows import SlotRows

if TYPE_CHECKING:
    from pegboard.ops import KernelTable
    from pegboard.types import ForwardContext


class Owner(Protocol):
    """What sites share. kernels: the ops to compute with."""

    kernels: KernelTable

    def rows(self, ctx: ForwardContext) -> SlotRows:
        """Return the slots of a batch's rows."""


class EmbeddingSite:
    """A table of embeddings, with the factors of each slot."""

    def __init__(self, owner: Owner, bank: EmbeddingBank) -> None:
        self.bank = bank
        self._owner = owner

    def add(self, ids: Tensor, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Add to each row of `out` [T, H], in place, what its slot adds for its id. ids: [T]."""
        rows = self._owner.rows(ctx)
        if len(rows) != len(ids):
            raise RuntimeError(f"an adapted embedding got {len(ids)} ids of a batch that has slots for {len(rows)}")
        added: Tensor = self._owner.kernels.lora_embed_(out, ids, rows, self.bank)
        return added


class Site:
    """Layers that read the same input (q, k and v, say), the members, and the factors of each slot."""

    def __init__(self, owner: Owner, bank: Bank) -> None:
        self.bank = bank
        self._owner = owner

    def add(self, x: Tensor, out: Tensor, ctx: ForwardContext, members: Sequence[int], starts: Sequence[int]) -> Tensor:
        """Add to each row of `out` [T, N], in place, what its slot adds: of members[i] from column starts[i]. x: [T, K]."""
        rows = self._owner.rows(ctx)
        if len(rows) != len(x):
            raise RuntimeError(
                f"an adapted layer got {len(x)} rows of a batch that has slots for another number of them"
            )
        added: Tensor = self._owner.kernels.lora_add_(out, x, rows, self.bank, members, starts)
        return added


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
        if ctx is None or not adapts(ctx):
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
        if ctx is None or not adapts(ctx):
            return out
        return modules[0].site.add(x, out, ctx, [module.member for module in modules], starts)


class RowEmbedding(nn.Module):
    """base(ids) + what each row's slot adds to its embedding."""

    additive = True

    def __init__(self, base: nn.Module, site: EmbeddingSite) -> None:
        super().__init__()
        self.base = base
        self.site = site

    def forward(self, ids: Tensor, ctx: ForwardContext) -> Tensor:
        """[T] int64 -> [T, H]."""
        out: Tensor = self.base(ids)
        return self.site.add(ids, out, ctx) if adapts(ctx) else out


def adapts(ctx: ForwardContext) -> bool:
    """Whether rows of a batch have slots."""
    return ctx.adapter_slots is not None or ctx.adapter_rows is not None
