"""Layers that hold 4-bit weights. Nothing trains them; an adapter beside them may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pegboard.errors import ConfigError
from pegboard.nn import Linear
from pegboard.nn.layer import Layer
from pegboard.ops import KernelTable, kernel_table
from pegboard_int4 import ops
from pegboard_int4.rounding import round_tokens
from pegboard_int4.stored import PER_WORD, finite_codes, pack, parts_checked

if TYPE_CHECKING:
    from pegboard.types import ForwardContext


_TABLE = kernel_table({"int4_linear": ops.int4_linear})


class _Product(torch.autograd.Function):
    """round(x) @ W.T that keeps x and no dequantised weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int4Linear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        kernels = layer.kernels
        rounded = round_tokens(x)[0] if layer.activations else x
        out: Tensor = kernels.int4_linear(rounded, layer.weight, layer.scales, kernels.linear)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        d_x: Tensor = ctx.layer.kernels.linear(grad, ctx.layer.dequantised(grad.dtype).t(), None)
        return d_x.mul_(round_tokens(x)[1]) if ctx.layer.activations else d_x, None


class Int4Linear(Layer):
    """round(x) @ (codes * scales).T + bias; in the place of a `pegboard.nn.Linear`, without storage until it is loaded.

    name: where it stands in the model, for errors. model: whose other parameters tell the device once they are in place.
    weight: int32 [N, K / 8], eight codes a word. scales: float32 [N, K / group].
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
        group: int,
        activations: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.in_features = in_features
        self.out_features = out_features
        self.group = group
        self.activations = activations
        # The tuple hides the model, which is no part of this module.
        self._model = (model,)
        words = torch.empty(out_features, in_features // PER_WORD, dtype=torch.int32, device="meta")
        self.register_buffer("weight", words)
        self.register_buffer("scales", torch.empty(out_features, in_features // group, device="meta"))
        self.bias = bias

    def load_weight(self, leaf: str, tensor: Tensor) -> None:
        """Round a full-precision tensor into place; one that is not the weight is copied. Raises ModelError where it is not finite."""
        if leaf != "weight":
            with torch.no_grad():
                getattr(self, leaf).copy_(tensor)
            return
        codes, scales = finite_codes(self.name, tensor.to(self.like().device), self.group)
        self._put(pack(codes), scales)

    def load_parts(self, leaf: str, parts: Mapping[str, Tensor]) -> None:
        """Take a weight as a checkpoint holds it quantised; nothing is rounded again."""
        words, scales = parts_checked(f"{self.name}.{leaf}", parts, self.group)
        device = self.like().device
        self._put(words.to(device), scales.to(device, torch.float32))

    def _put(self, words: Tensor, scales: Tensor) -> None:
        """Take a weight; into the memory that there is, which may be that of all experts."""
        if self.weight.is_meta:
            self.weight, self.scales = words, scales
        else:
            self.weight.copy_(words)
            self.scales.copy_(scales)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [N, K]."""
        values: Tensor = self.kernels.int4_values(self.weight, self.scales, dtype)
        return values

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        out: Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias

    def plain(self) -> Linear:
        """Return a full-precision layer of the same weights, in the dtype of the model's first parameter; inputs are not rounded there."""
        dtype = next(p.dtype for p in self._model[0].parameters() if p.is_floating_point())
        with torch.device("meta"):
            linear = Linear(self.in_features, self.out_features)
        linear.weight = nn.Parameter(self.dequantised(dtype), requires_grad=False)
        linear.bias, linear.kernels = self.bias, self.kernels
        return linear

    def part(self, style: Literal["column", "row"], index: int, count: int) -> Int4Linear:
        """Return a layer that holds part `index` of `count`: of its outputs and bias by "column", of its inputs by "row".

        Raises ConfigError where a group would be cut, or where rounded inputs would be split: their range is that of the whole token.
        """
        columns = style == "column"
        size = self.out_features if columns else self.in_features
        if size % count or (not columns and size // count % self.group):
            raise ConfigError(
                f"{self.name}: {size} {'outputs' if columns else 'inputs'} do not divide into {count} equal parts"
                + ("" if columns else f" of whole groups of {self.group}"),
                fix="use a smaller tensor-parallel group",
            )
        if not columns and self.activations:
            raise ConfigError(
                f"{self.name}: its inputs are rounded over the whole token, which a part does not see",
                fix="quantise with activations=false to split inputs",
            )
        length = size // count
        rows, width = (length, self.in_features) if columns else (self.out_features, length)
        bias = None if self.bias is None or not columns else self.bias.detach()[index * length : (index + 1) * length]
        own = Int4Linear(
            self.name,
            width,
            rows,
            None if bias is None else nn.Parameter(bias.clone(), requires_grad=False),
            self._model[0],
            group=self.group,
            activations=self.activations,
        )
        dim = 0 if columns else 1
        own.weight, own.scales = (t.chunk(count, dim)[index].clone() for t in (self.weight, self.scales))
        own.kernels = self.kernels
        return own

    def extra_repr(self) -> str:
        return (
            f"{self.in_features} -> {self.out_features}, int4 in groups of {self.group}, bias={self.bias is not None}"
        )

    def like(self) -> Tensor:
        """Return a parameter of the model that is in place: its norms, which nothing quantises."""
        placed = (p for p in self._model[0].parameters() if not p.is_meta and p.is_floating_point())
        return next(placed, torch.empty(0))
