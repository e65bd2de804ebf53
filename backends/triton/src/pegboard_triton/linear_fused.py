"""One row through a norm, or a gated activation, and the product behind it: a decode step of one sequence is mostly launches otherwise.

The product's programs make what they multiply themselves: a norm's scale is a factor of the whole product, so that it is known when a
program has read the row that it multiplies with anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton import gated, linear_small, norm
from pegboard_triton.catalogue import Variant
from pegboard_triton.kernel import kernel
from pegboard_triton.operators import TYPES, differentiates, on, takes
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase


@kernel
def one_row(
    x,
    residual,
    scales,
    weight,
    bias,
    out,
    total,
    outputs,
    stride,
    eps,
    INPUTS: tl.constexpr,
    KIND: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out [N] = weight [N, K] a + bias. KIND "norm" and "offset": a is the norm of x + residual, which the first program stores to
    `total`; "silu" and "gelu_tanh": a is the gated activation of x [2 K].
    """
    first = tl.program_id(0) == 0
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    weights = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * stride + k[None, :]
    product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.range(0, INPUTS, BLOCK_K):
        inside = k < INPUTS - start
        if INPUTS % BLOCK_K == 0:
            b = tl.load(weights + start).to(tl.float32)
        else:
            b = tl.load(weights + start, mask=inside[None, :], other=0.0).to(tl.float32)
        a = tl.load(x + start + k, mask=inside, other=0.0).to(tl.float32)
        if KIND == "norm" or KIND == "offset":
            a += tl.load(residual + start + k, mask=inside, other=0.0).to(tl.float32)
            rounded = a.to(total.dtype.element_ty)
            tl.store(total + start + k, rounded, mask=inside & first)
            a = rounded.to(tl.float32)
            squares += a * a
            factor = tl.load(scales + start + k, mask=inside, other=0.0).to(tl.float32)
            a *= factor + 1.0 if KIND == "offset" else factor
        else:
            up = tl.load(x + INPUTS + start + k, mask=inside, other=0.0).to(tl.float32)
            z = a if KIND == "silu" else 1.5957691216057308 * (a + 0.044715 * a * a * a)
            a = a / (1.0 + tl.exp(-z)) * up
        product += b * a[None, :]
    value = tl.sum(product, 1)
    if KIND == "norm" or KIND == "offset":
        value *= tl.rsqrt(tl.sum(squares) / INPUTS + eps)
    if BIAS:
        value += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(out + n, value.to(out.dtype.element_ty), mask=n < outputs)


def launch(
    kind: str,
    x: Tensor,
    residual: Tensor | None,
    scales: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    use: Mapping[str, int],
) -> tuple[Tensor, Tensor | None]:
    """Return (out [1, N], x + residual). x: [1, K], or [1, 2 K] for a gate. use: BLOCK_N and so on."""
    outputs, inputs = weight.shape
    out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(residual)
    with on(x.device):
        one_row[(triton.cdiv(outputs, use["BLOCK_N"]),)](
            x,
            residual,
            scales,
            weight,
            bias,
            out,
            total,
            outputs,
            weight.stride(0),
            eps,
            INPUTS=inputs,
            KIND=kind,
            BIAS=bias is not None,
            **use,
        )
    return out, total


def norm_linear(
    x: Tensor, residual: Tensor, scales: Tensor, eps: float, offset: bool, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Op `norm_linear`: in one kernel for a single row where that was measured to pay, else in two."""
    use = _chosen("norm", x, weight, residual, scales, *(() if bias is None else (bias,)))
    if use is None:
        if offset:
            total = x + residual
            return linear_small.linear(norm.offset_rms_norm(total, scales, eps), weight, bias), total
        normed, total = norm.add_rms_norm(x, residual, scales, eps)
        return linear_small.linear(normed, weight, bias), total
    out, kept = launch("offset" if offset else "norm", x, residual, scales, eps, weight, bias, use)
    assert kept is not None
    return out, kept


def gated_linear(gate_up: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Op `gated_linear`: in one kernel for a single row where that was measured to pay, else in two."""
    use = _chosen("gate", gate_up, weight, *(() if bias is None else (bias,)))
    if use is None:
        inner = (gated.silu_mul if activation == "silu" else gated.gelu_tanh_mul)(gate_up)
        return linear_small.linear(inner, weight, bias)
    return launch(activation, gate_up, None, None, 0.0, weight, bias, use)[0]


def _chosen(kind: str, x: Tensor, weight: Tensor, *others: Tensor) -> Mapping[str, int] | None:
    """Return how the kernel is launched; None where it is not."""
    if x.dim() != 2 or x.shape[0] != 1 or weight.stride(1) != 1 or not weight.numel() or not takes(x, weight, *others):
        return None
    if differentiates(x, weight, *others) or not all(t.is_contiguous() for t in (x, *others)):
        return None
    outputs, inputs = weight.shape
    use = dict(choice(f"linear_{kind}", x.device, outputs=outputs, inputs=inputs))
    return use if use.pop("pays") else None


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the ops, for models that decode in half precision."""
    if phase == "train" or dtype not in TYPES or dtype.itemsize != 2:
        return {}
    return {"norm_linear": norm_linear, "gated_linear": gated_linear}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernel is launched."""
    pointers = ("x", "residual", "scales", "weight", "bias", "out", "total")
    for dtype in ("bf16", "fp16"):
        types = dict.fromkeys(pointers, f"*{dtype}") | {"outputs": "i32", "stride": "i32", "eps": "fp32"}
        for kind in ("norm", "offset", "silu", "gelu_tanh"):
            sizes = {"INPUTS": 3072, "KIND": kind, "BIAS": True, "BLOCK_N": 2, "BLOCK_K": 1024}
            yield Variant(f"linear_fused.{kind}[{dtype}]", one_row, types, sizes, {"num_warps": 4})
