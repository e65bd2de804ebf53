"""Linear layers with a low-rank addition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegboard.nn.linear import Linear, Product
from pegboard.ops import linear as reference_linear
from pegboard_lora.low_rank import add_low_rank, with_low_rank

if TYPE_CHECKING:
    from pegboard.nn.parallel import Split
    from pegboard.types import ForwardContext

# Rows of the base weight that are widened to float32 at a time.
_ROWS = 1024


class LoraLinear(nn.Module):
    """base(x) + scaling * B A dropout(x) (arXiv:2106.09685).

    base: the frozen linear layer. lora_a: [rank, in_features]. lora_b: [out_features, rank]. Both are made on the meta
    device; `reset` gives them storage and values. enabled: whether the addition counts.
    """

    additive = True

    def __init__(
        self, base: nn.Module, rank: int, scaling: float, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.base = base
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]
        self.rank = rank
        self.scaling = scaling
        self.dropout = dropout
        self.enabled = True
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, dtype=dtype, device="meta"))
        self.lora_b = nn.Parameter(torch.empty(self.out_features, rank, dtype=dtype, device="meta"))

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        base: Any = self.base
        if self.enabled and getattr(base, "whole", False):
            # A base that rounds its weight computes with the sum: adding afterwards would leave the update unrounded.
            updated: Tensor = base.with_update(x, self.lora_a, self.lora_b, self.scaling)
            return updated
        dense = getattr(base, "dense", None)
        if type(base) is Linear and base.bias is None and not base.weight.requires_grad:
            dense = partial(_same, base.weight)
        product = Product(lambda x: base(x, ctx), self.out_features, dense)
        return self.group_forward([self], x, product, [0], ctx)

    def delta(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor | None:
        """[T, in_features] -> what is added to the base's output, [T, out_features]; None while switched off."""
        if not self.enabled:
            return None
        inner = self.linear(self._dropped(x), self.lora_a.to(x.dtype), None)
        return self.linear(inner, self.lora_b.to(x.dtype), None) * self.scaling

    @classmethod
    def group_forward(
        cls,
        modules: Sequence[LoraLinear],
        x: Tensor,
        base: Product,
        starts: Sequence[int],
        ctx: ForwardContext | None = None,
    ) -> Tensor:
        """Return base(x) with the deltas of modules that share the input x, that of module i in the columns from starts[i].

        Without dropout one product serves all lora_a; with it each module draws its own mask.
        """
        active = [(module, start) for module, start in zip(modules, starts, strict=True) if module.enabled]
        if not active:
            return base(x)
        if any(module.training and module.dropout > 0 for module, _ in active):
            out = base(x)
            for module, start in active:
                out = module._add(module._dropped(x), out, start)
            return out
        return with_low_rank(
            base,
            x,
            [start for _, start in active],
            [module.scaling for module, _ in active],
            [module.lora_a for module, _ in active],
            [module.lora_b for module, _ in active],
            active[0][0].linear,
        )

    @classmethod
    def grouped_delta(
        cls, modules: Sequence[LoraLinear], x: Tensor, ends: Tensor, product: Callable[..., Tensor]
    ) -> Tensor | None:
        """Return what modules of all experts add to their outputs, as `pegboard.nn.experts.ExpertGroup` asks: two grouped products."""
        first = modules[0]
        if not any(module.enabled for module in modules):
            return None
        if any((m.enabled, m.rank, m.scaling) != (True, first.rank, first.scaling) for m in modules):
            return NotImplemented
        down = torch.stack([module.lora_a for module in modules]).to(x.dtype)
        up = torch.stack([module.lora_b for module in modules]).to(x.dtype)
        return product(product(first._dropped(x), down, ends), up, ends) * first.scaling

    @property
    def linear(self) -> Callable[..., Tensor]:
        """The product x @ weight.T that the base computes with."""
        kernels = getattr(self.base, "kernels", None)
        return reference_linear if kernels is None else kernels.linear

    def reset(self, *, device: torch.device, init: str, generator: torch.Generator) -> None:
        """Give A random values and B zeros, on `device`.

        Values are drawn on the host, for the whole layer where a part of it is here: every device, and every group of them, gets the same.
        """
        split: Split | None = getattr(self.base, "divided", None)
        if split is not None and split.dim == 0:
            split = None  # A is whole on every rank
        columns = self.in_features if split is None else split.whole
        down = torch.empty(self.rank, columns)
        if init == "gaussian":
            down.normal_(0.0, 1.0 / self.rank, generator=generator)
        else:
            # Kaiming's uniform rule with a = sqrt(5).
            bound = columns**-0.5
            down.uniform_(-bound, bound, generator=generator)
        if split is not None:
            down = split.of(down).contiguous()
        self.lora_a = nn.Parameter(down.to(device=device, dtype=self.lora_a.dtype))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, self.rank, device=device, dtype=self.lora_b.dtype))

    def merged_weight(self, rows: slice) -> Tensor:
        """Return these rows of the base weight with the addition in it, float32 (float64 for a float64 base)."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        wide = torch.promote_types(weight.dtype, torch.float32)
        return torch.addmm(weight[rows].to(wide), self.lora_b[rows].to(wide), self.lora_a.to(wide), alpha=self.scaling)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Write the merged weight over the base's, in place (fused groups share that memory), and return the base."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        for start in range(0, self.out_features, _ROWS):
            rows = slice(start, start + _ROWS)
            weight[rows] = self.merged_weight(rows).to(weight.dtype)
        return self.base

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}, enabled={self.enabled}"

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x

    def _add(self, x: Tensor, out: Tensor, start: int) -> Tensor:
        return add_low_rank(out, x, [start], [self.scaling], [self.lora_a], [self.lora_b], self.linear)


def _same(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight


class DoraLinear(LoraLinear):
    """magnitude * (W + scaling B A) / ||W + scaling B A|| x, norms over each output row (arXiv:2402.09353).

    magnitude: [out_features]. The norm is a constant for the gradient (section 4.3 of the paper). With dropout in training
    the base product is computed on x for the plain part and on dropout(x) for the change, as PEFT does.
    """

    additive = False

    def __init__(
        self, base: nn.Module, rank: int, scaling: float, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(base, rank, scaling, dropout=dropout, dtype=dtype)
        self.magnitude = nn.Parameter(torch.empty(self.out_features, dtype=dtype, device="meta"))
        self._kept_norm: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        if not self.enabled:
            plain: Tensor = self.base(x, ctx)
            return plain
        bias: Tensor | None = getattr(self.base, "bias", None)
        factor = (self.magnitude / self.norm()).to(x.dtype)
        weight = self.base.weight
        if self.training and self.dropout > 0:
            dropped = self._dropped(x)
            inner = self.linear(dropped, self.lora_a.to(x.dtype), None)
            update = self.linear(inner, self.lora_b.to(x.dtype), None) * self.scaling
            change = self.linear(dropped, weight, None) * (factor - 1) + update * factor
            changed: Tensor = self.base(x, ctx) + change
            return changed
        total = self._add(x, self.linear(x, weight, None), 0) * factor
        return total if bias is None else total + bias

    def delta(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor | None:
        """[T, in_features] -> the change of the output; None while switched off."""
        return self.forward(x, ctx) - self.base(x, ctx) if self.enabled else None

    def norm(self) -> Tensor:
        """Return ||W + scaling B A|| of each output row, [out_features], detached.

        It is kept between calls without gradients, for as long as the weight and the factors stay as they are.
        """
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        sources: tuple[Tensor, ...] = (weight, self.lora_a, self.lora_b)
        if torch.is_grad_enabled() or any(source.is_inference() for source in sources):
            return self._norm()
        key = tuple(value for source in sources for value in (source.data_ptr(), source._version))
        if self._kept_norm is None or self._kept_norm[0] != key:
            self._kept_norm = (key, self._norm())
        return self._kept_norm[1]

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """||w + s b A||^2 = ||w||^2 + 2 s b·(A w) + s^2 b·(A A^T b) by row: no matrix of the weight's size is made."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        wide = torch.promote_types(weight.dtype, torch.promote_types(self.lora_a.dtype, torch.float32))
        down, up = self.lora_a.to(wide), self.lora_b.to(wide) * self.scaling
        gram = down @ down.t()
        squares = torch.empty(self.out_features, dtype=wide, device=weight.device)
        for start in range(0, self.out_features, _ROWS):
            rows = slice(start, start + _ROWS)
            block, b = weight[rows].to(wide), up[rows]
            squares[rows] = block.square().sum(1) + ((2 * (block @ down.t()) + b @ gram) * b).sum(1)
        return squares.clamp_(min=0).sqrt_()

    def reset(self, *, device: torch.device, init: str, generator: torch.Generator) -> None:
        """As for LoRA; the magnitude is the norm of the base's rows."""
        super().reset(device=device, init=init, generator=generator)
        self.magnitude = nn.Parameter(self._norm().to(self.magnitude.dtype))

    def merged_weight(self, rows: slice) -> Tensor:
        """Return these rows of the effective weight, float32 or wider."""
        direction = super().merged_weight(rows)
        factor = self.magnitude[rows].to(direction.dtype) / torch.linalg.vector_norm(direction, dim=1)
        return direction * factor[:, None]
