"""The ops of the distributions pegboard-int8, pegboard-int4 and pegboard-nf4, where those are installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton.operators import INTERPRETED, TYPES, differentiates, on, takes
from pegboard_triton.quantized import few
from pegboard_triton.quantized.packed import FLOAT8, INT4, INT8, NF4, Packed, dynamic_values
from pegboard_triton.quantized.rows import product
from pegboard_triton.quantized.widen import stacked, values
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

MOST = 32
"""Rows of x up to which packed weights are multiplied as they are: with more, a widened weight and matrix units at their best win."""

_GROUPS = (32, 64, 128, 256)
"""Columns of a scale that a step of the kernel may have."""


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return replacements of those ops that are registered, for models of a dtype that the kernels take."""
    found = registered()
    makers = {
        "int8_linear": _int8_linear,
        "int4_linear": _int4_linear,
        "int4_values": _int4_values,
        "nf4_linear": _nf4_linear,
        "nf4_values": _nf4_values,
        "fp8_linear": _fp8_linear,
    }
    return {name: make(found[name].function) for name, make in makers.items() if name in found and dtype in TYPES}


def _int8_linear(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def int8_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
        """Op `int8_linear`."""
        whole = weight.is_contiguous() and scales.is_contiguous()
        if not (_few(x, bias) and whole):
            return fallback(x, weight, scales, bias)
        return _product(x, [Packed(INT8, _shape(weight), weight, scales, weight.shape[1])], bias)

    return int8_linear


def _fp8_linear(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def fp8_linear(
        x: Tensor, weight: Tensor, scales: Tensor, block: int | None, bias: Tensor | None, linear: Callable[..., Tensor]
    ) -> Tensor:
        """Op `fp8_linear`."""
        whole = weight.is_contiguous() and scales.is_contiguous()
        if not (_few(x, bias) and whole and (block is None or block in _GROUPS)):
            return fallback(x, weight, scales, block, bias, linear)
        rows, columns = _shape(weight)
        codes, shared, scaled = weight.view(torch.uint8), block or rows, min(block or columns, columns)
        return _product(x, [Packed(FLOAT8, (rows, columns), codes, scales, scaled, shared=shared)], bias)

    return fp8_linear


def _int4_linear(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def int4_linear(x: Tensor, words: Tensor, scales: Tensor, linear: Callable[..., Tensor]) -> Tensor:
        """Op `int4_linear`."""
        weight = _int4(words, scales)
        if weight is None or weight.scaled not in _GROUPS or not _few(x, None):
            return (
                fallback(x, words, scales, linear)
                if weight is None
                else linear(x, int4_values(words, scales, x.dtype), None)
            )
        return _product(x, [weight], None)

    int4_values = _int4_values(registered()["int4_values"].function)
    return int4_linear


def _int4_values(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def int4_values(words: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Op `int4_values`."""
        weight = _int4(words, scales)
        if weight is None or dtype not in TYPES:
            return fallback(words, scales, dtype)
        with on(words.device):
            return values(weight, dtype)

    return int4_values


def _int4(words: Tensor, scales: Tensor) -> Packed | None:
    if not (takes(scales) and scales.dtype == torch.float32 and words.is_contiguous() and scales.is_contiguous()):
        return None
    shape = (words.shape[0], words.shape[1] * 8)
    return Packed(INT4, shape, words.view(torch.uint8), scales, shape[1] // scales.shape[1])


class _Widened(torch.autograd.Function):
    """x @ W.T that keeps nothing but the packed weight, which is there anyway: the backward pass widens it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Sequence[Packed], linear: Callable[..., Tensor]) -> Tensor:
        ctx.weights, ctx.linear = weights, linear
        return _widened(x, weights, linear)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        with on(grad.device):
            full = stacked(ctx.weights, grad.dtype)
        return ctx.linear(grad, full.t(), None), None, None


def _nf4_linear(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def nf4_linear(x: Tensor, weight: Any, bias: Tensor | None, linear: Callable[..., Tensor]) -> Tensor:
        """Op `nf4_linear`. weight: an `Nf4Matrix`, or several as an `Nf4Stack`."""
        if not takes(x):
            return fallback(x, weight, bias, linear)
        parts = [_nf4(part) for part in getattr(weight, "members", (weight,))]
        if any(part is None for part in parts):
            return fallback(x, weight, bias, linear)
        found = [part for part in parts if part is not None]
        if _few(x, bias) and x.shape[0] <= few.MOST and x.dtype.itemsize == 2 and weight.shape[1] % 64 == 0:
            return _product(x, found, bias)
        out: Tensor = _Widened.apply(x, found, linear) if differentiates(x) else _widened(x, found, linear)
        return out if bias is None else out + bias

    return nf4_linear


def _nf4_values(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def nf4_values(weight: Any, dtype: torch.dtype) -> Tensor:
        """Op `nf4_values`. weight: an `Nf4Matrix`, or several as an `Nf4Stack`."""
        parts = [_nf4(part) for part in getattr(weight, "members", (weight,))]
        found = [part for part in parts if part is not None]
        if dtype not in TYPES or len(found) < len(parts) or not (INTERPRETED or weight.packed.device.type != "cpu"):
            return fallback(weight, dtype)
        with on(weight.packed.device):
            return stacked(found, dtype)

    return nf4_values


def _nf4(matrix: Any) -> Packed | None:
    tensors = [t for t in (matrix.packed, matrix.scales, matrix.nested, matrix.offset) if t is not None]
    if not all(t.is_contiguous() and t.device.type != "meta" for t in tensors):
        return None
    if matrix.nested is None:
        return Packed(NF4, matrix.shape, matrix.packed, matrix.scales, 64)
    table = dynamic_values(matrix.packed.device)
    return Packed(NF4, matrix.shape, matrix.packed, matrix.scales, 64, table, matrix.nested, matrix.offset, 256)


def _widened(x: Tensor, weights: Sequence[Packed], linear: Callable[..., Tensor]) -> Tensor:
    with on(x.device):
        full = stacked(weights, x.dtype)
    return linear(x, full, None)


def _few(x: Tensor, bias: Tensor | None) -> bool:
    """Whether few rows are to be multiplied, and no gradient is asked for."""
    if x.dim() != 2 or not 0 < x.shape[0] <= MOST or not takes(x) or differentiates(x):
        return False
    return bias is None or (takes(x, bias) and bias.is_contiguous() and not differentiates(bias))


def _product(x: Tensor, weights: Sequence[Packed], bias: Tensor | None) -> Tensor:
    """Return x times the weights, one below the other."""
    x = x if x.stride(1) == 1 else x.contiguous()
    sizes = [weight.shape[0] for weight in weights]
    out = torch.empty(x.shape[0], sum(sizes), dtype=x.dtype, device=x.device)
    biases: Sequence[Tensor | None] = [None] * len(weights) if bias is None else bias.split(sizes)
    with on(x.device):
        for weight, own, target in zip(weights, biases, out.split(sizes, 1), strict=True):
            if weight.shape[0]:
                _one_product(x, weight, own, target)
    return out


def _one_product(x: Tensor, weight: Packed, bias: Tensor | None, out: Tensor) -> None:
    (rows, inputs), name = x.shape, _NAMES[weight.form.value]
    sizes = {"rows": rows, "outputs": weight.shape[0], "inputs": inputs}
    if rows <= few.MOST and x.dtype.itemsize == 2 and inputs % 2 == 0:
        few.few_product(x.contiguous(), weight, bias, choice(f"{name}_few", x.device, **sizes), out)
        return
    use = dict(choice(f"{name}_rows", x.device, **sizes))
    if weight.scaled < inputs:
        use["BLOCK_K"] = weight.scaled
    # Parts of the inputs that have no step would be computed for nothing.
    use["SPLIT"] = max(min(use["SPLIT"], inputs // use["BLOCK_K"]), 1)
    product(x, weight, bias, use, out)


_NAMES = {INT8.value: "int8", FLOAT8.value: "fp8", INT4.value: "int4", NF4.value: "nf4"}


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]
