"""The product of few rows with a matrix, as in decoding: bound by how fast the matrix is read, each of its rows once.

Without matrix units: a program multiplies a few rows of the matrix with up to four rows of x, which leaves every thread enough
loads in flight to read at the memory's speed, and many small programs to fill the card even where the matrix is narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard import ops
from pegboard_triton.catalogue import Variant
from pegboard_triton.kernel import kernel, rehearsing
from pegboard_triton.operators import TYPES, differentiates, on, takes
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

_TOGETHER = 4
"""Rows of x that a program multiplies."""


@kernel
def few_rows(
    x,
    weight,
    bias,
    out,
    rows,
    outputs,
    x_stride,
    stride,
    INPUTS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out [M, N] = x [M, K] weight^T + bias. Programs: tiles of N, of which each group of TOGETHER (1 to 4) rows of x has its own, one
    after the other.
    """
    groups = tl.cdiv(rows, TOGETHER)
    m = tl.program_id(0) % groups * TOGETHER
    n = tl.program_id(0) // groups * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    weights = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * stride + k[None, :]
    total0 = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    total1 = total0
    total2 = total0
    total3 = total0
    row0 = x + m.to(tl.int64) * x_stride + k
    row1 = x + tl.minimum(m + 1, rows - 1).to(tl.int64) * x_stride + k
    row2 = x + tl.minimum(m + 2, rows - 1).to(tl.int64) * x_stride + k
    row3 = x + tl.minimum(m + 3, rows - 1).to(tl.int64) * x_stride + k
    for start in tl.range(0, INPUTS, BLOCK_K, num_stages=STAGES):
        inside = k < INPUTS - start
        if INPUTS % BLOCK_K == 0:
            b = tl.load(weights + start).to(tl.float32)
        else:
            b = tl.load(weights + start, mask=inside[None, :], other=0.0).to(tl.float32)
        total0 += b * tl.load(row0 + start, mask=inside, other=0.0).to(tl.float32)[None, :]
        if TOGETHER > 1:
            total1 += b * tl.load(row1 + start, mask=inside, other=0.0).to(tl.float32)[None, :]
        if TOGETHER > 2:
            total2 += b * tl.load(row2 + start, mask=inside, other=0.0).to(tl.float32)[None, :]
        if TOGETHER > 3:
            total3 += b * tl.load(row3 + start, mask=inside, other=0.0).to(tl.float32)[None, :]
    _finish(total0, bias, out, m, n, rows, outputs, BIAS)
    if TOGETHER > 1:
        _finish(total1, bias, out, m + 1, n, rows, outputs, BIAS)
    if TOGETHER > 2:
        _finish(total2, bias, out, m + 2, n, rows, outputs, BIAS)
    if TOGETHER > 3:
        _finish(total3, bias, out, m + 3, n, rows, outputs, BIAS)


@triton.jit
def _finish(total, bias, out, m, n, rows, outputs, BIAS: tl.constexpr):
    value = tl.sum(total, 1)
    if BIAS:
        value += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    at = out + m.to(tl.int64) * outputs + n
    tl.store(at, value.to(out.dtype.element_ty), mask=(n < outputs) & (m < rows))


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, use: Mapping[str, int]) -> Tensor:
    """Return [M, N]. x: [M, K], weight: [N, K], both with rows that are contiguous in themselves. use: BLOCK_N and so on."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    together = min(rows, _TOGETHER)
    few_rows[(triton.cdiv(rows, together) * triton.cdiv(outputs, use["BLOCK_N"]),)](
        x,
        weight,
        bias,
        out,
        rows,
        outputs,
        x.stride(0),
        weight.stride(0),
        INPUTS=inputs,
        TOGETHER=together,
        BIAS=bias is not None,
        **use,
    )
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[T, K] x [N, K] -> [T, N]: op `linear`.

    Launching this kernel takes longer than torch's product does, while it runs shorter: it is for graphs, which pay for a launch once.
    Outside of one it runs when it is first asked for, since a graph that is being captured is no place to compile.
    """
    fits = (
        x.dim() == weight.dim() == 2
        and 0 < x.shape[0] <= _TOGETHER
        and x.dtype.itemsize == 2
        and weight.numel() > 0
        and x.stride(1) == weight.stride(1) == 1
        and (takes(x, weight) if bias is None else takes(x, weight, bias) and bias.is_contiguous())
    )
    if not fits or differentiates(x, weight) or (bias is not None and differentiates(bias)):
        return ops.linear(x, weight, bias)
    use = dict(choice("linear_small", x.device, rows=x.shape[0], outputs=weight.shape[0], inputs=weight.shape[1]))
    if x.shape[0] > use.pop("most"):
        return ops.linear(x, weight, bias)
    if rehearsing():
        return launch(x, weight, bias, use)
    kind = (x.device, x.dtype, x.shape[0], weight.shape[1], bias is None, *use.values())
    if kind in _compiled and not _capturing(x.device):
        return ops.linear(x, weight, bias)
    _compiled.add(kind)
    with on(x.device):
        return launch(x, weight, bias, use)


linear.beside_torch = True  # type: ignore[attr-defined]

_compiled: set[tuple[Any, ...]] = set()


def _capturing(device: torch.device) -> bool:
    ask = getattr(torch.get_device_module(device.type), "is_current_stream_capturing", None)
    return ask is not None and bool(ask())


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the product, for models that decode in half precision."""
    return {"linear": linear} if phase != "train" and dtype in TYPES and dtype.itemsize == 2 else {}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernel is launched."""
    for kind in ("bf16", "fp16"):
        types = {"x": f"*{kind}", "weight": f"*{kind}", "bias": f"*{kind}", "out": f"*{kind}"}
        types |= dict.fromkeys(("rows", "outputs", "x_stride", "stride"), "i32")
        for together in (1, 4):
            sizes = {"INPUTS": 4096, "TOGETHER": together, "BIAS": True, "BLOCK_N": 2, "BLOCK_K": 2048, "STAGES": 1}
            yield Variant(f"linear_small[{kind},{together}]", few_rows, types, sizes, {"num_warps": 4})
