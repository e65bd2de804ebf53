"""The experts of a mixture: each a gated MLP with parameters of its own, all computed together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from pegboard.nn.grouped import GATED, combine, expert_rows, grouped_outer, sort_by_expert
from pegboard.nn.layer import Layer, alike
from pegboard.nn.linear import Linear, SharedStorage

if TYPE_CHECKING:
    from pegboard.types import ForwardContext


class Expert(Layer):
    """down(activation(gate(x)) * up(x)), without biases. names: what checkpoints call gate, up and down."""

    def __init__(self, hidden_size: int, intermediate_size: int, names: tuple[str, str, str], owner: Experts) -> None:
        super().__init__()
        gate, up, down = names
        self._owner = (owner,)  # the tuple hides it: it is no part of this module
        self.add_module(gate, Linear(hidden_size, intermediate_size))
        self.add_module(up, Linear(hidden_size, intermediate_size))
        self.add_module(down, Linear(intermediate_size, hidden_size))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):
            # An adapted or quantised layer came in: groups that look at hundreds of members would not notice at each pass.
            self._owner[0].changed()


class Experts(Layer):
    """Gated MLPs of one shape, of which each row uses a few. Children "0", "1", … are the experts, as in checkpoints.

    names: what checkpoints call an expert's gate, up and down. activation: as of the op `moe`.
    """

    def __init__(
        self,
        count: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        activation: Literal["silu", "gelu_tanh"] = "silu",
    ) -> None:
        super().__init__()
        self.count, self.activation = count, activation
        self.gate_up: ExpertGroup
        self.down: ExpertGroup
        first = Expert(hidden_size, intermediate_size, names, self)
        another = alike(first)
        for number in range(count):
            self.add_module(str(number), another() if number else first)
        self.gate_up = ExpertGroup(self, names[:2])
        self.down = ExpertGroup(self, names[2:])

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """x [T, H], ids [T, k] and weights [T, k] as of op `moe_route` -> [T, H]."""
        joint = self.gate_up.joint(self.down, x, ids, weights, self.activation)
        if joint is not None:
            return joint
        order, ends = sort_by_expert(ids, self.count)
        rows = order // ids.shape[1]
        inner = self.gate_up(x.index_select(0, rows), ends, rows, ctx)
        out = self.down(GATED[self.activation](inner), ends, rows, ctx)
        return combine(out, order, weights)

    def changed(self) -> None:
        """Hear that a layer of an expert was put in the place of another."""
        for group in (self._modules.get("gate_up"), self._modules.get("down")):
            if group is not None:
                cast(ExpertGroup, group).stale = True


class ExpertGroup(SharedStorage):
    """The layers of all experts that read the same input, as [E, outputs, inputs] in one storage.

    The layers stay where they are in the module tree, under their checkpoint names, and own their parameters, as those of a LinearGroup
    do. Plain ones are one grouped product, in the storage or, where there is none (FSDP gathers parameter by parameter), in a copy that
    lives as long as the product. Adapted ones add to it; where one layer is neither, each expert is computed by itself.

    An adapted layer's class may have a class method `grouped_delta(modules, x, ends, product)`: what modules of all experts, one each,
    add to the output [N, out_features] of rows sorted by expert, made with `product`, the op `grouped_linear`; None for nothing,
    NotImplemented for modules that are not alike.
    """

    def __init__(self, owner: Experts, names: Sequence[str]) -> None:
        super().__init__()
        self._owner = (owner,)
        self.names = tuple(names)
        self._weight: Tensor | None = None
        self._fused: list[Any] = []
        self.stale = True

    def _look(self) -> None:
        """Note which layers stand in the experts now, where that changed; layers that were not fused end the shared storage."""
        if not self.stale:
            return
        self.stale = False
        experts = [self._owner[0]._modules[str(number)] for number in range(self._owner[0].count)]
        self.members = [[cast(Any, expert)._modules[name] for name in self.names] for expert in experts]
        flat = [member for expert in self.members for member in expert]
        # Plain layers are asked for nothing that they lack: a module takes long to say so, thousands much longer.
        other = [member for member in flat if type(member) is not Linear]
        bases = [getattr(member, "base", member) for member in flat] if other else flat
        self._bases: list[Linear] | None = bases if all(type(base) is Linear for base in bases) else None
        self._flat: list[Any] = bases
        self._adapted = any(hasattr(member, "base") for member in other)
        self._additive = all(getattr(member, "additive", True) for member in other)
        if bases != self._fused:
            self.unfuse()

    @property
    def fused(self) -> bool:
        self._look()
        return self._weight is not None

    def fuse(self) -> bool:
        self._look()
        if self._bases is None or any(base.weight.is_meta for base in self._bases):
            return False
        with torch.no_grad():
            weight = torch.stack([base.weight for base in self._bases])
        self._adopt(weight.view(len(self.members), -1, weight.shape[-1]))
        return True

    def materialise(self, make: Callable[[tuple[int, ...]], Tensor]) -> None:
        self._look()
        if self._bases is not None and self._bases[0].weight.is_meta:
            rows, columns = self._bases[0].weight.shape
            self._adopt(make((len(self.members), rows * len(self.names), columns)))

    def unfuse(self) -> None:
        self._weight, self._fused = None, []

    def _adopt(self, weight: Tensor) -> None:
        """Make the layers' parameters views of a storage."""
        assert self._bases is not None
        for base, view in zip(self._bases, weight.flatten(0, 1).chunk(len(self._bases)), strict=True):
            # Not by setting an attribute, which looks for the name everywhere in a module: it is a parameter, and stays one.
            base._parameters["weight"] = nn.Parameter(view, requires_grad=base.weight.requires_grad)
        self._weight, self._fused = weight, self._flat

    def stacked(self) -> Tensor | None:
        """Return the weights [E, outputs, inputs] that alone say what the layers compute; None where there is more, or no storage.

        Gradients go to the layers' parameters.
        """
        self._look()
        if self._weight is None or self._bases is None or self._adapted:
            return None
        return self._shared(self._weight)

    def joint(self, down: ExpertGroup, x: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor | None:
        """Return what the experts whose gate and up are this group compute in one op; None where they cannot."""
        gate_up, out = self.stacked(), down.stacked()
        if gate_up is None or out is None:
            return None
        result: Tensor = self.kernels.moe(x, gate_up, out, ids, weights, activation)
        return result

    def forward(self, x: Tensor, ends: Tensor, rows: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """x [N, inputs] sorted by expert, ends [E] as of op `grouped_linear` -> [N, outputs]. rows: [N], which row of the batch each is."""
        self._look()
        out = self.product(x, ends) if self._additive else None
        if out is None:
            return self._each(x, ends, rows, ctx)
        return self._with_deltas(out, x, ends, rows, ctx) if self._adapted else out

    def product(self, x: Tensor, ends: Tensor) -> Tensor | None:
        """Return what the layers compute without what adapted ones add; None where they are not of one kind."""
        if self._bases is None:
            return None
        if self._weight is None:
            views = [base.weight for base in self._bases]
            apart: Tensor = _Scattered.apply(self.kernels.grouped_linear, x, ends, *views)  # type: ignore[no-untyped-call]
            return apart
        out: Tensor = self.kernels.grouped_linear(x, self._shared(self._weight), ends)
        return out

    def _shared(self, weight: Tensor) -> Tensor:
        if torch.is_grad_enabled() and any(base.weight.requires_grad for base in self._bases or ()):
            shared: Tensor = _Views.apply(weight, *[base.weight for base in self._bases or ()])  # type: ignore[no-untyped-call]
            return shared
        return weight

    def _with_deltas(self, out: Tensor, x: Tensor, ends: Tensor, rows: Tensor, ctx: ForwardContext | None) -> Tensor:
        """Add what adapted layers add, of one name after the other."""
        parts = []
        for place, part in enumerate(out.chunk(len(self.names), -1)):
            modules = [expert[place] for expert in self.members]
            kinds = {type(module) for module in modules}
            together = getattr(kinds.pop(), "grouped_delta", None) if len(kinds) == 1 else None
            delta = NotImplemented if together is None else together(modules, x, ends, self.kernels.grouped_linear)
            if delta is NotImplemented:
                delta = self._apart(modules, x, ends, rows, ctx, part.shape[-1])
            parts.append(part if delta is None else part + delta)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _apart(
        self, modules: Sequence[Any], x: Tensor, ends: Tensor, rows: Tensor, ctx: ForwardContext | None, width: int
    ) -> Tensor | None:
        """Return what the modules add, expert by expert; nothing for those that are not adapted."""
        if not any(hasattr(module, "base") for module in modules):
            return None
        found = []
        for expert, start, end, own in self._runs(ends, rows, ctx):
            module = modules[expert]
            delta = module.delta(x[start:end], own) if hasattr(module, "base") else None
            found.append(x.new_zeros(end - start, width) if delta is None else delta)
        return torch.cat(found) if found else x.new_zeros(0, width)

    def _each(self, x: Tensor, ends: Tensor, rows: Tensor, ctx: ForwardContext | None) -> Tensor:
        """Return what the layers compute, each by itself."""
        found = [
            torch.cat([member(x[start:end], own) for member in self.members[expert]], -1)
            for expert, start, end, own in self._runs(ends, rows, ctx)
        ]
        if found:
            return torch.cat(found)
        return x.new_zeros(0, sum(member.out_features for member in self.members[0]))

    def _runs(
        self, ends: Tensor, rows: Tensor, ctx: ForwardContext | None
    ) -> Iterator[tuple[int, int, int, ForwardContext | None]]:
        """Yield (expert, start, end, context of these rows). In training experts without rows come too: ranks sum gradients of the same
        parameters, so that one that is not used must have a gradient, of zeros.
        """
        slots = held = None
        if ctx is not None and ctx.adapter_slots is not None:
            slots = ctx.adapter_slots[rows.to(ctx.adapter_slots.device)]
        if ctx is not None and ctx.adapter_rows is not None:
            held = ctx.adapter_rows[rows]
        for expert, start, end in expert_rows(ends, empty=torch.is_grad_enabled()):
            own = ctx
            if ctx is not None and not (slots is None and held is None):
                here, there = (None if one is None else one[start:end] for one in (slots, held))
                own = replace(ctx, adapter_slots=here, adapter_rows=there, adapter_plans={})
            yield expert, start, end, own


class QuantisedExperts(ExpertGroup):
    """Experts whose layers hold their weights in other forms than parameters: each of their tensors is a view of one storage for all.

    Takes the place of an ExpertGroup when a quantizer swaps the layers. kind: their class; one that is loaded writes into the tensors
    that it has, wherever they are. stored: names of those, each with the outputs as its first dimension or blocks of them, or without
    dimensions; layers of a form without one of them have None there.
    """

    kind: ClassVar[type[nn.Module]]
    stored: ClassVar[tuple[str, ...]]

    def __init__(self, owner: Experts, names: Sequence[str]) -> None:
        super().__init__(owner, names)
        self._tensors: dict[str, Tensor | None] = {}

    def _look(self) -> None:
        if self.stale:
            super()._look()
            self._alike = all(type(base) is self.kind for base in self._flat)

    @property
    def fused(self) -> bool:
        self._look()
        return bool(self._tensors) or super().fused

    def fuse(self) -> bool:
        self._look()
        if not self._alike:
            return super().fuse()
        device = self._flat[0].like().device
        for name in self.stored:
            sample = getattr(self._flat[0], name)
            if sample is None:
                self._tensors[name] = None
                continue
            room = torch.empty((len(self._flat), *sample.shape), dtype=sample.dtype, device=device)
            for base, view in zip(self._flat, room.unbind(), strict=True):
                held = getattr(base, name)
                if not held.is_meta:
                    view.copy_(held)
                setattr(base, name, view)
            self._tensors[name] = room.view(len(self.members), -1, *sample.shape[1:])
        self._fused = self._flat
        return True

    def unfuse(self) -> None:
        super().unfuse()
        self._tensors = {}

    def joint(self, down: ExpertGroup, x: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor | None:
        self._look()
        down._look()
        if not self._tensors or self._adapted or down._adapted:
            return super().joint(down, x, ids, weights, activation)
        other = getattr(down, "_tensors", None)
        if not other:
            return None
        return self.op(*self._tensors.values(), *other.values(), x, ids, weights, activation)

    @abstractmethod
    def op(self, *values: Any) -> Tensor:
        """Return the experts' output. values: the `stored` tensors of gate and up, [E, both, …], those of down, then x, ids, weights and
        activation, as of op `moe`.
        """


def by_expert(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    activation: str,
    gate_up: Callable[[Tensor, int], Tensor],
    down: Callable[[Tensor, int], Tensor],
    experts: int,
) -> Tensor:
    """Return what experts compute of which each is two functions, (rows, expert) -> rows: the plain form of an op over quantised ones."""
    order, ends = sort_by_expert(ids, experts)
    rows = x.index_select(0, order // ids.shape[1])
    found = [
        down(GATED[activation](gate_up(rows[start:end], expert)), expert) for expert, start, end in expert_rows(ends)
    ]
    return combine(torch.cat(found), order, weights) if found else torch.zeros_like(x)


class _Views(torch.autograd.Function):
    """The storage itself, of which gradients go to the views."""

    @staticmethod
    def forward(ctx: Any, storage: Tensor, *views: Tensor) -> Tensor:
        ctx.count = len(views)
        return storage.data  # the same memory, but no view, which autograd would follow when a parameter is written to

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *grads[0].flatten(0, 1).chunk(ctx.count))


class _Scattered(torch.autograd.Function):
    """A grouped product of weights that lie apart: views [outputs, inputs], as many of them for one expert as for another.

    They are put together for each pass and kept as they are, since whoever gathered them (FSDP) takes them back between the passes.
    """

    @staticmethod
    def forward(ctx: Any, product: Callable[..., Tensor], x: Tensor, ends: Tensor, *views: Tensor) -> Tensor:
        ctx.save_for_backward(x, ends, *views)
        ctx.product = product
        return product(x, _stacked(views, len(ends)), ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, ends, *views = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d_x = ctx.product(grad, _stacked(views, len(ends)).transpose(1, 2), ends) if needs[1] else None
        d_views: Sequence[Tensor | None] = [None] * len(views)
        if any(needs[3:]):
            d_views = grouped_outer(grad, x, ends).flatten(0, 1).chunk(len(views))
        return (None, d_x, None, *d_views)


def _stacked(views: Sequence[Tensor], experts: int) -> Tensor:
    return torch.stack(tuple(views)).view(experts, -1, views[0].shape[-1])
