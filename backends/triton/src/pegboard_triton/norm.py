"""RMS norms (arXiv:1910.07467), with a residual added before or with weights of one more, and their gradients.

A row is read once and kept in registers. The backward pass reads the row again and computes its scale anew, so that nothing but the
input is kept; each program adds its rows' part of the weight's gradient up by itself, and the parts are summed in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard import ops
from pegboard_triton.catalogue import Variant
from pegboard_triton.kernel import kernel
from pegboard_triton.operators import TYPES, differentiates, operator, takes
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

WIDEST = 32768
"""Numbers of a row up to which one program holds it."""


@kernel
def rms_norm_forward(
    x,
    residual,
    weight,
    out,
    total,
    rows,
    heads,
    x_token,
    x_head,
    size,
    eps,
    OFFSET: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < size)[None, :]
    where = ((row // heads) * x_token + (row % heads) * x_head)[:, None] + column[None, :]
    flat = row[:, None] * size + column[None, :]
    value = tl.load(x + where, mask, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + flat, mask, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + flat, rounded, mask)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / size + eps)
    factor = tl.load(weight + column, column < size, other=0.0).to(tl.float32)
    if OFFSET:
        factor += 1.0
    tl.store(out + flat, (value * scale[:, None] * factor[None, :]).to(out.dtype.element_ty), mask)


@kernel
def rms_norm_backward(
    grad,
    grad_total,
    x,
    weight,
    d_x,
    d_weight,
    rows,
    heads,
    x_token,
    x_head,
    size,
    eps,
    tiles,
    OFFSET: tl.constexpr,
    ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """tiles: how many groups of ROWS rows each program has, one after the other."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    factor = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    if OFFSET:
        factor += 1.0
    part = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        where = ((row // heads) * x_token + (row % heads) * x_head)[:, None] + column[None, :]
        flat = row[:, None] * size + column[None, :]
        value = tl.load(x + where, mask, other=0.0).to(tl.float32)
        upstream = tl.load(grad + flat, mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 1) / size + eps)[:, None]
        normed = value * scale
        if WEIGHT:
            part += upstream * normed
        upstream *= factor[None, :]
        along = tl.sum(upstream * normed, 1)[:, None] / size
        found = (upstream - normed * along) * scale
        if ADD:
            found += tl.load(grad_total + flat, mask, other=0.0).to(tl.float32)
        tl.store(d_x + flat, found.to(d_x.dtype.element_ty), mask)
    if WEIGHT:
        tl.store(d_weight + program * size + column, tl.sum(part, 0), inside)


@kernel
def rms_norm_sum_parts(parts, out, count, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """[count, size] float32 -> [size], in a fixed order."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((COUNT, BLOCK), tl.float32)
    for first in range(0, count, COUNT):
        row = first + tl.arange(0, COUNT)
        mask = (row < count)[:, None] & (column < size)[None, :]
        total += tl.load(parts + row[:, None] * size + column[None, :], mask, other=0.0)
    tl.store(out + column, tl.sum(total, 0).to(out.dtype.element_ty), column < size)


def _layout(x: Tensor) -> tuple[int, int, int]:
    """Return heads and the strides of tokens and heads, of rows [..., size] that lie densely or [T, heads, size] beside others."""
    if x.is_contiguous():
        return 1, x.shape[-1], 0
    return (1, x.stride(0), 0) if x.dim() == 2 else (x.shape[1], x.stride(0), x.stride(1))


def _fake_forward(x: Tensor, weight: Tensor, eps: float, offset: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("rms_norm(Tensor x, Tensor weight, float eps, bool offset) -> Tensor", _fake_forward)
def _norm(x: Tensor, weight: Tensor, eps: float, offset: bool) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch_forward(x, None, weight, out, None, eps, offset)
    return out


def _fake_add(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@operator("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)", _fake_add)
def _add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, total = torch.empty_like(x), torch.empty_like(x)
    _launch_forward(x, residual, weight, out, total, eps, False)
    return out, total


def _launch_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, total: Tensor | None, eps: float, offset: bool
) -> None:
    size = weight.shape[0]
    rows = x.numel() // size
    if not rows:
        return
    block = triton.next_power_of_2(size)
    use = dict(choice("rms_norm", x.device, size=block, rows=rows))
    per_program = use.pop("ROWS")
    rms_norm_forward[(triton.cdiv(rows, per_program),)](
        x,
        residual,
        weight,
        out,
        total,
        rows,
        *_layout(x),
        size,
        eps,
        OFFSET=offset,
        ADD=residual is not None,
        ROWS=per_program,
        BLOCK=block,
        **use,
    )


def _fake_backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, eps: float, offset: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), torch.empty_like(weight) if needs_weight else weight.new_empty(0)


@operator(
    "rms_norm_backward(Tensor grad, Tensor? grad_total, Tensor x, Tensor weight, float eps, bool offset, bool needs_weight)"
    " -> (Tensor, Tensor)",
    _fake_backward,
)
def _norm_backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, eps: float, offset: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients by x, [...] as `grad`, and by the weight, empty if not needed. grad_total: that of the sum, if one is kept."""
    size = weight.shape[0]
    rows = x.numel() // size
    d_x = torch.empty_like(grad)
    if not rows:
        return d_x, torch.zeros_like(weight) if needs_weight else weight.new_empty(0)
    block = triton.next_power_of_2(size)
    use = dict(choice("rms_norm_backward", x.device, size=block))
    per_program, programs = use.pop("ROWS"), use.pop("programs")
    tiles = triton.cdiv(triton.cdiv(rows, per_program), programs)
    programs = triton.cdiv(rows, per_program * tiles)
    parts = x.new_empty((programs if needs_weight else 0, size), dtype=torch.float32)
    rms_norm_backward[(programs,)](
        grad,
        grad_total,
        x,
        weight,
        d_x,
        parts,
        rows,
        *_layout(x),
        size,
        eps,
        tiles,
        OFFSET=offset,
        ADD=grad_total is not None,
        WEIGHT=needs_weight,
        ROWS=per_program,
        BLOCK=block,
        **use,
    )
    if not needs_weight:
        return d_x, weight.new_empty(0)
    d_weight = torch.empty_like(weight)
    rms_norm_sum_parts[(triton.cdiv(size, 32),)](parts, d_weight, programs, size, COUNT=64, BLOCK=32, num_warps=4)
    return d_x, d_weight


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.offset = eps, offset
        out: Tensor = _norm(x, weight, eps, offset)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        d_x, d_weight = _norm_backward(
            grads[0].contiguous(), None, x, weight, ctx.eps, ctx.offset, ctx.needs_input_grad[1]
        )
        return d_x, d_weight if ctx.needs_input_grad[1] else None, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        out, total = _add_norm(x, residual, weight, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return out, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        total, weight = ctx.saved_tensors
        d_x, d_weight = _norm_backward(
            grads[0].contiguous(), grads[1].contiguous(), total, weight, ctx.eps, False, ctx.needs_input_grad[2]
        )
        return d_x, d_x, d_weight if ctx.needs_input_grad[2] else None, None


def _fits(x: Tensor, weight: Tensor) -> bool:
    size = weight.shape[0]
    if not takes(x, weight) or x.shape[-1] != size or not 0 < size <= WIDEST or not weight.is_contiguous():
        return False
    return x.is_contiguous() or (x.dim() in (2, 3) and x.stride(-1) == 1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., H] x [H] -> [..., H]: op `rms_norm`, in float32 and rounded once."""
    if not _fits(x, weight):
        return ops.rms_norm(x, weight, eps)
    run = _Norm.apply if differentiates(x, weight) else _norm
    out: Tensor = run(x, weight, eps, False)
    return out


def offset_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., H] x [H] -> [..., H]: op `offset_rms_norm`, with factors of 1 + weight."""
    if not _fits(x, weight):
        return ops.offset_rms_norm(x, weight, eps)
    run = _Norm.apply if differentiates(x, weight) else _norm
    out: Tensor = run(x, weight, eps, True)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """[T, H] twice -> (norm(x + residual), x + residual): op `add_rms_norm`."""
    if not _fits(x, weight) or not takes(x, residual) or x.shape != residual.shape:
        return ops.add_rms_norm(x, residual, weight, eps)
    run = _AddNorm.apply if differentiates(x, residual, weight) else _add_norm
    out: tuple[Tensor, Tensor] = run(x.contiguous(), residual.contiguous(), weight, eps)
    return out


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the norms, for models of a dtype that the kernels take."""
    if dtype not in TYPES:
        return {}
    return {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "offset_rms_norm": offset_rms_norm}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernels are launched."""
    for dtype in TYPES.values():
        pointers = dict.fromkeys(("x", "residual", "weight", "out", "total"), f"*{dtype}")
        sizes = dict.fromkeys(("rows", "heads", "x_token", "x_head", "size"), "i32") | {"eps": "fp32"}
        for block, rows, warps in ((128, 16, 4), (2048, 1, 4), (8192, 1, 8)):
            for add in (False, True):
                for offset in (False, True)[: 1 if add else 2]:
                    constants: dict[str, Any] = {"OFFSET": offset, "ADD": add, "ROWS": rows, "BLOCK": block}
                    signature = pointers | sizes
                    if not add:
                        signature = {
                            name: kind for name, kind in signature.items() if name not in ("residual", "total")
                        }
                        constants |= {"residual": None, "total": None}
                    name = f"{'add_' * add}{'offset_' * offset}rms_norm[{dtype},{block}]"
                    yield Variant(name, rms_norm_forward, signature, constants, {"num_warps": warps})
        grads = dict.fromkeys(("grad", "grad_total", "x", "weight", "d_x"), f"*{dtype}")
        grads |= {"d_weight": "*fp32", "tiles": "i32"} | sizes
        for block, rows, warps in ((128, 16, 4), (2048, 1, 4), (8192, 1, 8)):
            for add in (False, True):
                constants = {"OFFSET": False, "ADD": add, "WEIGHT": True, "ROWS": rows, "BLOCK": block}
                signature = dict(grads)
                if not add:
                    del signature["grad_total"]
                    constants |= {"grad_total": None}
                name = f"{'add_' * add}rms_norm.backward[{dtype},{block}]"
                yield Variant(name, rms_norm_backward, signature, constants, {"num_warps": warps})
        parts = {"parts": "*fp32", "out": f"*{dtype}", "count": "i32", "size": "i32"}
        yield Variant(f"rms_norm.sum_parts[{dtype}]", rms_norm_sum_parts, parts, {"COUNT": 64, "BLOCK": 32})
