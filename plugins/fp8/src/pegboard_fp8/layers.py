"""Layers that hold e4m3 weights. Nothing trains them; an adapter beside them may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pegboard.errors import ConfigError, ModelError
from pegboard.nn import Linear
from pegboard.nn.experts import QuantisedExperts
from pegboard.nn.layer import Layer
from pegboard.ops import KernelTable, kernel_table
from pegboard_fp8.ops import E4M3, dequantise, quantise, scale_shape
from pegboard_fp8.stored import parts_checked

if TYPE_CHECKING:
    from pegboard.types import ForwardContext

_TABLE = kernel_table()


class Fp8Linear(Layer):
    """x @ (weight * scales).T + bias; in the place of a `pegboard.nn.Linear`, without storage until it is loaded.

    name: where it stands in the model, for errors. model: whose other parameters tell the device once they are in place.
    weight: e4m3 [N, K]. scales: float32, one for each block of `block` rows and columns; None for one of the matrix.
    """

    kernels: KernelTable = _TABLE
    weight: Tensor
    scales: Tensor

    def __init__(
        self,
        name: str,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        model: nn.Module,
        *,
        block: int | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.in_features = in_features
        self.out_features = out_features
        self.block = block
        # The tuple hides the model, which is no part of this module.
        self._model = (model,)
        shape = scale_shape(out_features, in_features, block)
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=E4M3, device="meta"))
        self.register_buffer("scales", torch.empty(shape, dtype=torch.float32, device="meta"))
        self.bias = bias

    def like(self) -> Tensor:
        """Return a parameter of the model that is in place: its norms, which nothing quantises."""
        placed = (p for p in self._model[0].parameters() if not p.is_meta and p.is_floating_point())
        return next(placed, torch.empty(0))

    def load_weight(self, leaf: str, tensor: Tensor) -> None:
        """Round a full-precision tensor into place; one that is not the weight is copied. Raises ModelError where it is not finite."""
        if leaf != "weight":
            with torch.no_grad():
                getattr(self, leaf).copy_(tensor)
            return
        self._put(*finite(self.name, tensor.to(self.like().device), self.block))

    def load_parts(self, leaf: str, parts: Mapping[str, Tensor]) -> None:
        """Take a weight as a checkpoint holds it; nothing is rounded again."""
        device = self.like().device
        weight, scales = parts_checked(f"{self.name}.{leaf}", parts, self.block)
        self._put(weight.to(device), scales.to(device, torch.float32))

    def _put(self, weight: Tensor, scales: Tensor) -> None:
        """Take a weight; into the memory that there is, which may be that of all experts."""
        if self.weight.is_meta:
            self.weight, self.scales = weight, scales
        else:
            self.weight.copy_(weight)
            self.scales.copy_(scales)

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        out: Tensor = self.kernels.fp8_linear(x, self.weight, self.scales, self.block, self.bias, self.kernels.linear)
        return out

    def plain(self) -> Linear:
        """Return a full-precision layer of the same weights, in the dtype of the model's first parameter."""
        dtype = next(p.dtype for p in self._model[0].parameters() if p.is_floating_point())
        with torch.device("meta"):
            linear = Linear(self.in_features, self.out_features)
        linear.weight = nn.Parameter(dequantise(self.weight, self.scales, self.block, dtype), requires_grad=False)
        linear.bias, linear.kernels = self.bias, self.kernels
        return linear

    def part(self, style: Literal["column", "row"], index: int, count: int) -> Fp8Linear:
        """Return a layer that holds part `index` of `count`: of its outputs and bias by "column", of its inputs by "row".

        Raises ConfigError where a block would be cut.
        """
        columns = style == "column"
        size = self.out_features if columns else self.in_features
        if size % count or (self.block is not None and size // count % self.block):
            raise ConfigError(
                f"{self.name}: {size} {'outputs' if columns else 'inputs'} do not divide into {count} equal parts"
                + ("" if self.block is None else f" of whole blocks of {self.block}"),
                fix="use a smaller tensor-parallel group, or quantizer.block=null",
            )
        length, dim = size // count, 0 if columns else 1
        rows, width = (length, self.in_features) if columns else (self.out_features, length)
        bias = None if self.bias is None or not columns else self.bias.detach()[index * length : (index + 1) * length]
        own = Fp8Linear(
            self.name,
            width,
            rows,
            None if bias is None else nn.Parameter(bias.clone(), requires_grad=False),
            self._model[0],
            block=self.block,
        )
        own.weight = self.weight.chunk(count, dim)[index].clone()
        own.scales = (self.scales if self.block is None else self.scales.chunk(count, dim)[index]).clone()
        own.kernels = self.kernels
        return own

    def extra_repr(self) -> str:
        blocks = "one scale" if self.block is None else f"blocks of {self.block}"
        return f"{self.in_features} -> {self.out_features}, e4m3, {blocks}, bias={self.bias is not None}"


class Fp8Experts(QuantisedExperts):
    """The layers of all experts, their e4m3 weights in one storage and their scales in another."""

    kernels: KernelTable = _TABLE
    kind = Fp8Linear
    stored = ("weight", "scales")

    def op(self, *values: Any) -> Tensor:
        held = 2 * len(self.stored)
        out: Tensor = self.kernels.fp8_moe(*values[:held], self._flat[0].block, *values[held:])
        return out


def finite(name: str, weight: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    """Return the weight of layer `name` as e4m3 and scales. Raises ModelError where it is not finite."""
    rounded, scales = quantise(weight, block)
    if not scales.isfinite().all():
        raise ModelError(
            f"{name}.weight holds values that are not finite, which e4m3 cannot hold",
            fix="mend the checkpoint, or load it without the quantizer",
        )
    return rounded, scales
