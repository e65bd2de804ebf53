"""The layers that take the place of full-precision ones. Weights are buffers: nothing trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pegboard.blockwise import block_count
from pegboard.errors import ConfigError, ModelError
from pegboard.nn import Linear, LinearGroup
from pegboard.nn.layer import Layer
from pegboard.ops import KernelTable, kernel_table
from pegboard_nf4 import ops
from pegboard_nf4.matrix import BLOCK, Nf4Matrix, Nf4Stack, empty, quantise
from pegboard_nf4.stored import matrix_of

if TYPE_CHECKING:
    from pegboard.types import ForwardContext

_TABLE = kernel_table({"nf4_linear": ops.nf4_linear, "nf4_values": ops.nf4_values})


class Nf4Linear(Layer):
    """x @ dequantised(weight).T + bias; in the place of a `pegboard.nn.Linear`, without storage until it is loaded.

    name: where it stands in the model, for errors. model: whose other parameters tell the device once they are in place.
    double: whether the scales are quantised, too. Buffers are the tensors of an `Nf4Matrix`,
    of the form that `double` says until a checkpoint's own of another form are loaded.
    """

    kernels: KernelTable = _TABLE
    weight: Tensor
    scales: Tensor
    nested: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        name: str,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        model: nn.Module,
        *,
        double: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.in_features = in_features
        self.out_features = out_features
        self._quantised_twice = double
        # The tuple hides the model, which is no part of this module.
        self._model = (model,)
        self._hold(empty((out_features, in_features), double=double))
        self.bias = bias

    @property
    def matrix(self) -> Nf4Matrix:
        """The weight, as it is held."""
        return Nf4Matrix((self.out_features, self.in_features), self.weight, self.scales, self.nested, self.offset)

    def load_weight(self, leaf: str, tensor: Tensor) -> None:
        """Quantise a full-precision tensor into place; one that is not the weight is copied. Raises ModelError where it is not finite."""
        if leaf != "weight":
            with torch.no_grad():
                getattr(self, leaf).copy_(tensor)
            return
        self._hold(finite_matrix(self.name, tensor.to(self.like().device), double=self._quantised_twice))

    def load_parts(self, leaf: str, parts: Mapping[str, Tensor]) -> None:
        """Take a weight as a checkpoint holds it quantised; nothing is rounded again."""
        self._hold(matrix_of(f"{self.name}.{leaf}", parts))

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        out: Tensor = self.kernels.nf4_linear(x, self.matrix, self.bias, self.kernels.linear)
        return out

    @property
    def dense(self) -> Callable[[torch.dtype], Tensor] | None:
        """What gives the whole weight, for adapters that multiply with it themselves; None where there is a bias, and where that would
        hold for nothing what `nf4_linear` reads in pieces.
        """
        values = self.kernels.nf4_values
        return None if self.bias is not None or values is ops.nf4_values else partial(values, self.matrix)

    def plain(self) -> Linear:
        """Return a full-precision layer that computes the same, in the dtype of the model's first parameter."""
        dtype = next(p.dtype for p in self._model[0].parameters() if p.is_floating_point())
        with torch.device("meta"):
            linear = Linear(self.in_features, self.out_features)
        linear.weight = nn.Parameter(self.matrix.dequantise(dtype), requires_grad=False)
        linear.bias = self.bias
        linear.kernels = self.kernels
        return linear

    def part(self, style: Literal["column", "row"], index: int, count: int) -> Nf4Linear:
        """Return a layer that holds part `index` of `count`: of its outputs and bias by "column", of its inputs by "row".

        Scales become float32, as quantising those of a part would round them anew. Raises ConfigError where a block would be cut.
        """
        columns = style == "column"
        size, needed = (self.out_features, self.matrix.unit) if columns else (self.in_features, BLOCK)
        if size % count or size // count % needed or (not columns and self.in_features % BLOCK):
            raise ConfigError(
                f"{self.name}: {size} {'outputs' if columns else 'inputs'} do not divide into {count} equal parts of whole "
                f"blocks of {BLOCK} weights",
                fix=f"use a smaller tensor-parallel group, or leave the layer as it is: quantizer.skip=[{self.name}]",
            )
        length = size // count
        rows, width = (length, self.in_features) if columns else (self.out_features, length)
        own = Nf4Linear(self.name, width, rows, None, self._model[0], double=False)
        own.kernels = self.kernels
        taken = slice(index * length, (index + 1) * length)
        if columns:
            start, stop = (bound * self.in_features for bound in (taken.start, taken.stop))
            packed = self.weight[start // 2 : block_count(stop, 2)]
            scales = self.matrix.plain_scales()[start // BLOCK : block_count(stop, BLOCK)]
            own.bias = (
                None if self.bias is None else nn.Parameter(self.bias.detach()[taken].clone(), requires_grad=False)
            )
        else:
            packed = self.weight.view(rows, -1)[:, taken.start // 2 : taken.stop // 2].reshape(-1)
            scales = (
                self.matrix.plain_scales().view(rows, -1)[:, taken.start // BLOCK : taken.stop // BLOCK].reshape(-1)
            )
        own._hold(Nf4Matrix((rows, width), packed.clone(), scales.clone()))
        return own

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, nf4, double={self._quantised_twice}, bias={self.bias is not None}"

    def like(self) -> Tensor:
        """Return a parameter of the model that is in place: its norms, which nothing quantises."""
        placed = (p for p in self._model[0].parameters() if not p.is_meta and p.is_floating_point())
        return next(placed, torch.empty(0))

    def _hold(self, matrix: Nf4Matrix) -> None:
        """Take a matrix, into the memory that there is where it is of that form: it may be that of a group, or of all experts."""
        device = matrix.packed.device if matrix.packed.is_meta else self.like().device
        tensors = {"weight": matrix.packed, "scales": matrix.scales, "nested": matrix.nested, "offset": matrix.offset}
        for name, tensor in tensors.items():
            held = self._buffers.get(name)
            if (
                tensor is None
                or held is None
                or held.is_meta
                or (held.shape, held.dtype) != (tensor.shape, tensor.dtype)
            ):
                self.register_buffer(name, None if tensor is None else tensor.to(device))
            else:
                held.copy_(tensor)


class Nf4Group(LinearGroup):
    """A group that multiplies once with all members' weights: their codes are one storage, and what adapters add is added at once."""

    kernels: KernelTable = _TABLE

    def fuse(self) -> bool:
        """Give the members' codes one storage, before or after they are loaded; return whether that was possible."""
        bases = self._nf4_bases()
        if len(bases) != len(self.names) or len(bases) == 1 or len({base.bias is None for base in bases}) != 1:
            return False
        if any(base.in_features * base.out_features % BLOCK for base in bases):
            return False
        sizes = [base.weight.numel() for base in bases]
        weight = torch.empty(sum(sizes), dtype=torch.uint8, device=bases[0].like().device)
        for base, codes in zip(bases, weight.split(sizes), strict=True):
            base.weight = codes if base.weight.is_meta else codes.copy_(base.weight)
        self._weight = weight
        return True

    def _look(self, members: list[nn.Module]) -> None:
        super()._look(members)
        if len(self._nf4_bases()) != len(members):
            self.unfuse()  # one was put back in full precision

    def _dense(self) -> Callable[[torch.dtype], Tensor] | None:
        bases, weight = self._nf4_bases(), self._weight
        if weight is None or any(base.dense is None for base in bases):
            return None
        return partial(self.kernels.nf4_values, self._stacked(weight))

    def _stacked(self, weight: Tensor) -> Nf4Stack:
        bases = self._nf4_bases()
        shape = (sum(base.out_features for base in bases), bases[0].in_features)
        return Nf4Stack(shape, weight, weight, members=tuple(base.matrix for base in bases))

    def _base(self, x: Tensor, weight: Tensor) -> Tensor:
        bases = self._nf4_bases()
        matrix = self._stacked(weight)
        biases = [base.bias for base in bases if base.bias is not None]
        bias = torch.cat(tuple(biases)) if biases else None
        out: Tensor = self.kernels.nf4_linear(x, matrix, bias, self.kernels.linear)
        return out

    def _nf4_bases(self) -> list[Nf4Linear]:
        bases = [getattr(member, "base", member) for member in self.members]
        return [base for base in bases if type(base) is Nf4Linear]


def finite_matrix(name: str, weight: Tensor, *, double: bool) -> Nf4Matrix:
    """Return the weight of layer `name` in 4 bits. Raises ModelError where it is not finite."""
    matrix = quantise(weight, double=double)
    if not matrix.plain_scales().isfinite().all():
        raise ModelError(
            f"{name}.weight holds values that are not finite, which 4 bits cannot hold",
            fix="mend the checkpoint, or load it without the quantizer",
        )
    return matrix
