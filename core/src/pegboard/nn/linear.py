"""Linear layers, alone and in groups that share one input."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pegboard.nn.layer import Layer
from pegboard.ops import replaced

if TYPE_CHECKING:
    from pegboard.nn.norm import RMSNorm
    from pegboard.types import ForwardContext


class Linear(Layer):
    """x @ weight.T + bias.

    late_bias: the bias is left to whoever sums the parts of a layer that is split by its inputs.

    An adapted layer takes the place of a Linear and offers: `base` (the Linear), `forward(x, ctx)`, and `additive`: True when it
    computes base(x) + delta(x, ctx), which lets a LinearGroup keep its fused product. A class method
    `group_forward(modules, x, base, starts, ctx)`, where there is one, returns the product base(x) of all members with the deltas of the
    adapted ones in their columns; base is a `Product`.
    A base may compute with a function of its whole weight, rounding it say: while its `whole` is True, an adapter whose update is a
    product of two factors lets `base.with_update(x, down, up, scaling)` compute with weight + scaling * up @ down.
    """

    late_bias = False

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        out: Tensor = self.kernels.linear(x, self.weight, None if self.late_bias else self.bias)
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"


def late_bias(layer: nn.Module) -> Tensor | None:
    """Return the bias that a layer, adapted or not, leaves to be added behind the sum of its parts."""
    base: Any = getattr(layer, "base", layer)
    return base.bias if getattr(base, "late_bias", False) else None


class _FusedLinear(torch.autograd.Function):
    """One product for several weights that are row views of `storage`; gradients go to the views."""

    @staticmethod
    def forward(
        ctx: Any, linear: Callable[..., Tensor], x: Tensor, storage: Tensor, bias: Tensor | None, *views: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, storage)
        ctx.linear = linear
        ctx.sizes = [view.shape[0] for view in views if view.dim() == 2]
        return linear(x, storage, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, storage = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d_x = ctx.linear(grad, storage.t(), None) if needs[1] else None
        count = len(ctx.sizes)
        d_weights: Sequence[Tensor | None] = [None] * count
        if any(needs[4 : 4 + count]):
            d_weights = ctx.linear(grad.t(), x.t(), None).split(ctx.sizes)
        d_biases: Sequence[Tensor | None] = [None] * (len(needs) - 4 - count)
        if any(needs[4 + count :]):
            d_biases = grad.sum(0).split(ctx.sizes)
        return (None, d_x, None, None, *d_weights, *d_biases)


@dataclass(frozen=True, slots=True)
class Product:
    """What adapted layers add to: [T, K] -> [T, outputs].

    dense: dtype -> the weight [outputs, K], where the product is x @ weight.T and no more, and takes no gradient by it; None elsewhere.
    """

    run: Callable[[Tensor], Tensor]
    outputs: int
    dense: Callable[[torch.dtype], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product."""
        return self.run(x)


class SharedStorage(Layer, ABC):
    """Layers whose parameters are views of one storage while it is fused. The members own the parameters; this module has none."""

    @property
    @abstractmethod
    def fused(self) -> bool:
        """Whether the members share one storage."""

    @abstractmethod
    def fuse(self) -> bool:
        """Move the members' parameters into one storage, keeping their values; return whether that was possible."""

    @abstractmethod
    def materialise(self, make: Callable[[tuple[int, ...]], Tensor]) -> None:
        """Give members without storage one from `make` (shape -> tensor), as `fuse` would; nothing where that is not possible."""

    @abstractmethod
    def unfuse(self) -> None:
        """Forget the shared storage: the members' own parameters are all that counts from now on."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedStorage:
        # A cast or move gives each member a storage of its own.
        self.unfuse()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class LinearGroup(SharedStorage):
    """Several linear layers that read the same input: one product when their weights share a storage, one each otherwise.

    The members stay where they are in the module tree, under their checkpoint names, and own their parameters; `fuse` makes those
    parameters row views of one storage. The group holds no parameter and is not part of any state dict. A group of one is its member.
    """

    def __init__(self, owner: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        # Members are read through their owner, so that a module swapped in later (an adapter's) is found. The tuple hides the owner.
        self._owner = (owner,)
        self.names = tuple(names)
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        self._seen: list[nn.Module] = []
        self._adapted: list[nn.Module] = []
        self._starts: list[int] = []
        self._additive = True
        self._group_forward: Callable[..., Tensor] | None = None

    @property
    def members(self) -> list[nn.Module]:
        """The members as they stand now, adapted or not."""
        modules = self._owner[0]._modules
        return [cast(nn.Module, modules[name]) for name in self.names]

    def bases(self) -> list[Linear] | None:
        """The plain Linear of each member, or None when one of them is something else (quantised, say)."""
        found = [getattr(member, "base", member) for member in self.members]
        plain = [base for base in found if type(base) is Linear]
        return plain if len(plain) == len(found) else None

    @property
    def fused(self) -> bool:
        return self._weight is not None

    def fuse(self) -> bool:
        bases = self._alike()
        if bases is None or bases[0].weight.is_meta:
            return False
        with torch.no_grad():
            weight = torch.cat([base.weight for base in bases])
            bias = None if bases[0].bias is None else torch.cat([cast(Tensor, base.bias) for base in bases])
        self._adopt(bases, weight, bias)
        return True

    def materialise(self, make: Callable[[tuple[int, ...]], Tensor]) -> None:
        bases = self._alike()
        if bases is None or not bases[0].weight.is_meta:
            return
        rows = sum(base.out_features for base in bases)
        weight = make((rows, bases[0].in_features))
        self._adopt(bases, weight, None if bases[0].bias is None else make((rows,)))

    def _alike(self) -> list[Linear] | None:
        """Return the plain members, where there are several that can share a storage."""
        bases = self.bases()
        if len(self.names) == 1 or bases is None:
            return None
        kinds = {(base.weight.dtype, base.weight.device, base.bias is None) for base in bases}
        return bases if len(kinds) == 1 else None

    def _adopt(self, bases: Sequence[Linear], weight: Tensor, bias: Tensor | None) -> None:
        """Make the members' parameters views of a storage."""
        sizes = [base.out_features for base in bases]
        for base, view in zip(bases, weight.split(sizes), strict=True):
            base.weight = nn.Parameter(view, requires_grad=base.weight.requires_grad)
        if bias is not None:
            for base, view in zip(bases, bias.split(sizes), strict=True):
                base.bias = nn.Parameter(view, requires_grad=base.weight.requires_grad)
        self._weight, self._bias = weight, bias

    def unfuse(self) -> None:
        self._weight = self._bias = None

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, sum of out_features], the members' outputs side by side."""
        members = self.members
        if len(members) == 1:
            alone: Tensor = members[0](x, ctx)
            return alone
        if members != self._seen:
            self._look(members)
        if self._weight is None or not self._additive:
            return torch.cat([member(x, ctx) for member in members], -1)
        if self._adapted and self._group_forward is not None:
            weight = self._weight
            outputs = sum(self._out(member) for member in members)
            base = Product(lambda x: self._base(x, weight), outputs, self._dense())
            added: Tensor = self._group_forward(self._adapted, x, base, self._starts, ctx)
            return added
        out = self._base(x, self._weight)
        if not self._adapted:
            return out
        deltas = iter([cast(Any, member).delta(x, ctx) for member in self._adapted])
        parts = []
        for member, part in zip(members, out.split([self._out(member) for member in members], -1), strict=True):
            delta = next(deltas) if hasattr(member, "base") else None
            parts.append(part if delta is None else part + delta)
        return torch.cat(parts, -1)

    def behind(
        self, norm: RMSNorm, x: Tensor, residual: Tensor, ctx: ForwardContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (forward(norm(x + residual)), x + residual), in one op where the platform has it and nothing else is asked for."""
        if type(self) is LinearGroup and replaced(self.kernels, "norm_linear") and not torch.is_grad_enabled():
            members = self.members
            if members != self._seen:
                self._look(members)
            if self._weight is not None and not self._adapted:
                out: tuple[Tensor, Tensor] = self.kernels.norm_linear(
                    x, residual, norm.weight, norm.eps, norm.offset != 0, self._weight, self._bias
                )
                return out
        normed, total = norm.add(x, residual)
        return self(normed, ctx), total

    def _look(self, members: list[nn.Module]) -> None:
        """Note which members are adapted and where their columns start: what every pass asks anew would show in a decode step."""
        adapted = [member for member in members if hasattr(member, "base")]
        ends = itertools.accumulate(self._out(member) for member in members) if adapted else ()
        starts = [
            end - self._out(member) for member, end in zip(members, ends, strict=False) if hasattr(member, "base")
        ]
        self._adapted, self._starts = adapted, starts
        self._additive = all(member.additive for member in adapted)
        kinds = {type(member) for member in adapted}
        self._group_forward = getattr(kinds.pop(), "group_forward", None) if len(kinds) == 1 else None
        self._seen = members

    @staticmethod
    def _out(member: nn.Module) -> int:
        base: Any = getattr(member, "base", member)
        out: int = base.out_features
        return out

    def _dense(self) -> Callable[[torch.dtype], Tensor] | None:
        """Return what gives the whole weight, where it is all that the product needs, and takes no gradient."""
        bases, weight = self.bases(), self._weight
        if (
            bases is None
            or weight is None
            or self._bias is not None
            or any(base.weight.requires_grad for base in bases)
        ):
            return None
        return lambda dtype: weight

    def _base(self, x: Tensor, weight: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            bases = self.bases() or []
            if any(base.weight.requires_grad for base in bases):
                views = [base.weight for base in bases] + [base.bias for base in bases if base.bias is not None]
                out: Tensor = _FusedLinear.apply(self.kernels.linear, x, weight, self._bias, *views)  # type: ignore[no-untyped-call]
                return out
        out = self.kernels.linear(x, weight, self._bias)
        return out
