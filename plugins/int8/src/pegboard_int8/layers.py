"""The layers that take the place of full-precision ones. Weights are buffers: nothing trains them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pegboard.errors import ModelError
from pegboard.nn import LinearGroup
from pegboard.nn.columns import Columns
from pegboard.nn.experts import QuantisedExperts
from pegboard.nn.layer import Layer
from pegboard.nn.logits import capped
from pegboard.ops import KernelTable, kernel_table
from pegboard_int8.ops import quantise_

if TYPE_CHECKING:
    from pegboard.types import ForwardContext

_TABLE = kernel_table()


class Int8Matrix(Layer):
    """A matrix [rows, columns] as int8 `weight` and float32 `scales` [rows], without storage until it is loaded or fused.

    name: where it stands in the model, for errors. model: whose other parameters tell device and dtype once they are in place.
    """

    kernels: KernelTable = _TABLE
    weight: Tensor
    scales: Tensor

    def __init__(self, name: str, rows: int, columns: int, model: nn.Module) -> None:
        super().__init__()
        self.name = name
        # The tuple hides the model, which is no part of this module.
        self._model = (model,)
        self.register_buffer("weight", torch.empty(rows, columns, dtype=torch.int8, device="meta"))
        self.register_buffer("scales", torch.empty(rows, dtype=torch.float32, device="meta"))

    def like(self) -> Tensor:
        """Return a parameter of the model that is in place: its norms, which nothing quantises."""
        found = [p for p in self._model[0].parameters() if not p.is_meta and p.is_floating_point()]
        return found[0] if found else torch.empty(0)

    def load_weight(self, leaf: str, tensor: Tensor) -> None:
        """Round a tensor of the checkpoint into place; one of another name is copied. Raises ModelError where one is not finite."""
        if leaf != "weight":
            with torch.no_grad():
                getattr(self, leaf).copy_(tensor)
            return
        if self.weight.is_meta:
            self.weight = torch.empty(self.weight.shape, dtype=torch.int8, device=self.like().device)
            self.scales = torch.empty(self.scales.shape, dtype=torch.float32, device=self.weight.device)
        if not quantise_(self.weight, self.scales, tensor):
            raise ModelError(
                f"{self.name}.weight holds values that are not finite, which int8 cannot hold",
                fix="mend the checkpoint, or load it without the quantizer",
            )


class Int8Linear(Int8Matrix):
    """x @ (weight * scales).T + bias; in the place of a `pegboard.nn.Linear`."""

    def __init__(
        self, name: str, in_features: int, out_features: int, bias: nn.Parameter | None, model: nn.Module
    ) -> None:
        super().__init__(name, out_features, in_features, model)
        self.in_features = in_features
        self.out_features = out_features
        self.bias = bias

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        out: Tensor = self.kernels.int8_linear(x, self.weight, self.scales, self.bias)
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, int8, bias={self.bias is not None}"


class Int8Group(LinearGroup):
    """A group whose fused storage is int8; adapted members work as in any group."""

    kernels: KernelTable = _TABLE
    _scales: Tensor | None = None

    def fuse(self) -> bool:
        """Give the members one storage, before or after they are loaded; return whether that was possible."""
        members: list[Any] = [getattr(member, "base", member) for member in self.members]
        if any(type(member) is not Int8Linear for member in members):
            return False
        if len({member.bias is None for member in members}) != 1:
            return False
        sizes, width = [member.out_features for member in members], members[0].in_features
        device = members[0].like().device
        weight = torch.empty(sum(sizes), width, dtype=torch.int8, device=device)
        scales = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        for member, rows, values in zip(members, weight.split(sizes), scales.split(sizes), strict=True):
            if not member.weight.is_meta:
                rows.copy_(member.weight)
                values.copy_(member.scales)
            member.weight, member.scales = rows, values
        if members[0].bias is not None:
            with torch.no_grad():
                self._bias = torch.cat([member.bias for member in members])
                for member, part in zip(members, self._bias.split(sizes), strict=True):
                    member.bias = nn.Parameter(part, requires_grad=member.bias.requires_grad)
        self._weight, self._scales = weight, scales
        return True

    def unfuse(self) -> None:
        """Forget the shared storage."""
        super().unfuse()
        self._scales = None

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, sum of out_features], the members' outputs side by side."""
        if self._weight is not None and all(type(member) is Int8Linear for member in self.members):
            return self._base(x, self._weight)
        return super().forward(x, ctx)

    def _base(self, x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = self.kernels.int8_linear(x, weight, self._scales, self._bias)
        return out


class Int8Experts(QuantisedExperts):
    """The layers of all experts, their int8 weights in one storage and their scales in another."""

    kernels: KernelTable = _TABLE
    kind = Int8Linear
    stored = ("weight", "scales")

    def op(self, *values: Any) -> Tensor:
        out: Tensor = self.kernels.int8_moe(*values)
        return out


class Int8Embedding(Int8Matrix):
    """Token ids to vectors, in the dtype of the model's norms."""

    def forward(self, ids: Tensor) -> Tensor:
        """[T] int64 -> [T, columns]."""
        rows = self.weight.index_select(0, ids) * self.scales.index_select(0, ids)[:, None]
        return rows.to(self.like().dtype)


class Int8Head(Int8Matrix):
    """Hidden states to logits; a tied one reads the embedding's storage. softcap: as of the `pegboard.nn.Head` in whose place it is."""

    def __init__(
        self,
        name: str,
        rows: int,
        columns: int,
        model: nn.Module,
        tied: Int8Embedding | None,
        softcap: float | None = None,
    ) -> None:
        super().__init__(name, rows, columns, model)
        self.softcap = softcap
        self._tied = None if tied is None else (tied,)
        if tied is not None:
            del self.weight, self.scales

    @property
    def _source(self) -> Int8Matrix:
        return self if self._tied is None else self._tied[0]

    @property
    def matrix(self) -> Tensor:
        """The weight [V, H] in the model's dtype, made anew at each call: for losses."""
        source = self._source
        return (source.weight * source.scales[:, None]).to(self.like().dtype)

    @property
    def part(self) -> Tensor:
        """As `matrix`: the vocabulary of such a head is not split."""
        return self.matrix

    @property
    def columns(self) -> Columns:
        """All of them."""
        return Columns()

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, H] -> [M, V]."""
        source = self._source
        return capped(self.kernels.int8_linear(hidden, source.weight, source.scales, None), self.softcap)
