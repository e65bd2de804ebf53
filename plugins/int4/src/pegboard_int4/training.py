"""Quantisation-aware training: layers that round their weights and inputs while they learn, and hold them in full precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.nn import Linear
from pegboard_int4.rounding import round_tokens, round_weight

if TYPE_CHECKING:
    from pegboard.types import ForwardContext


class _RoundedProduct(torch.autograd.Function):
    """round(x) @ round(weight + scaling * up @ down).T, the gradient passing through the rounding where nothing was cut.

    Kept for the backward pass are the arguments alone: what is rounded is rounded again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        scaling: float,
        group: int,
        activations: bool,
        linear: Callable[..., Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, down, up)
        ctx.settings = scaling, group, activations, linear
        rounded, _ = round_weight(_total(weight, down, up, scaling), group)
        return linear(round_tokens(x)[0] if activations else x, rounded.to(x.dtype), None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, down, up = ctx.saved_tensors
        scaling, group, activations, linear = ctx.settings
        rounded, kept = round_weight(_total(weight, down, up, scaling), group)
        inputs, inside = round_tokens(x) if activations else (x, None)
        d_x = d_weight = d_down = d_up = None
        if ctx.needs_input_grad[0]:
            d_x = linear(grad, rounded.to(grad.dtype).t(), None)
            d_x = d_x if inside is None else d_x.mul_(inside)
        if any(ctx.needs_input_grad[1:4]):
            d_total = linear(grad.t(), inputs.t(), None).to(rounded.dtype).mul_(kept)
            d_weight = d_total.to(weight.dtype) if ctx.needs_input_grad[1] else None
            if down is not None and up is not None:
                d_down = (up.to(d_total.dtype).t() @ d_total).mul_(scaling).to(down.dtype)
                d_up = (d_total @ down.to(d_total.dtype).t()).mul_(scaling).to(up.dtype)
        return d_x, d_weight, d_down, d_up, None, None, None, None


class RoundedLinear(Linear):
    """round(x) @ round(weight).T + bias in training (straight-through, arXiv:1308.3432), weight and bias being a Linear's own.

    group, activations: as the `int4` quantizer will have them. start_step: steps that are computed as by a Linear first. active: whether
    rounding has begun.
    """

    def __init__(self, plain: Linear, *, group: int, activations: bool, start_step: int = 0) -> None:
        with torch.device("meta"):
            super().__init__(plain.in_features, plain.out_features)
        self.weight, self.bias, self.kernels = plain.weight, plain.bias, plain.kernels
        self.group, self.activations, self.start_step = group, activations, start_step
        self.active = start_step == 0

    def at_step(self, step: int) -> None:
        """Hear that optimizer step `step` (from 1) begins."""
        self.active = step > self.start_step

    def check_split(self, name: str, style: str, count: int) -> None:
        """Raise ConfigError, naming the layer, where a part of its inputs could not be rounded as the whole is."""
        if style != "row":
            return
        if self.activations:
            raise ConfigError(
                f"{name}: its inputs are rounded over the whole token, which a part does not see",
                fix="use mesh.shard, or quantizer.activations=false",
            )
        if self.in_features // count % self.group:
            raise ConfigError(
                f"{name}: {self.in_features} inputs do not divide into {count} parts of whole groups of {self.group}",
                fix="use mesh.shard, or a smaller quantizer.group",
            )

    @property
    def whole(self) -> bool:
        """Whether the output depends on the whole weight, what adapters add included, and not linearly."""
        return self.active

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[T, in_features] -> [T, out_features]."""
        return self._rounded(x, None, None, 1.0) if self.active else super().forward(x, ctx)

    def with_update(self, x: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
        """Compute with weight + scaling * up @ down, rounded as one: what a merged and converted model computes.

        x: [T, K]. down: [rank, K]. up: [N, rank].
        """
        return self._rounded(x, down, up, scaling)

    def plain(self) -> Linear:
        """Return a plain layer of the same parameters."""
        with torch.device("meta"):
            linear = Linear(self.in_features, self.out_features)
        linear.weight, linear.bias, linear.kernels = self.weight, self.bias, self.kernels
        return linear

    def _rounded(self, x: Tensor, down: Tensor | None, up: Tensor | None, scaling: float) -> Tensor:
        settings = (scaling, self.group, self.activations, self.kernels.linear)
        out: Tensor = _RoundedProduct.apply(x, self.weight, down, up, *settings)
        return out if self.bias is None or self.late_bias else out + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int4 in groups of {self.group}, active={self.active}"


def _total(weight: Tensor, down: Tensor | None, up: Tensor | None, scaling: float) -> Tensor:
    """Return weight + scaling * up @ down, as wide as the widest of them."""
    if down is None or up is None:
        return weight
    dtype = torch.promote_types(weight.dtype, torch.promote_types(down.dtype, up.dtype))
    return torch.addmm(weight.to(dtype), up.to(dtype), down.to(dtype), alpha=scaling)
