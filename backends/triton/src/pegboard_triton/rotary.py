"""Rotary positions in the split-half layout (arXiv:2104.09864), and their gradient, which turns back."""

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


@kernel
def rotary_turn(
    x,
    cos,
    sin,
    out,
    heads,
    x_token,
    x_head,
    dim,
    width,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """One token, HEADS heads. cos and sin: [T, width], the first half of sin negated. BACK: by the opposite angles."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half = width // 2
    column = tl.arange(0, HALF)
    inside = column < half
    angle = token * width + column
    cos_a = tl.load(cos + angle, inside).to(tl.float32)[None, :]
    cos_b = tl.load(cos + angle + half, inside).to(tl.float32)[None, :]
    sin_a = tl.load(sin + angle, inside).to(tl.float32)[None, :]
    sin_b = tl.load(sin + angle + half, inside).to(tl.float32)[None, :]
    if BACK:
        sin_a, sin_b = sin_b, sin_a
    mask = (head < heads)[:, None] & inside[None, :]
    source = x + token * x_token + head[:, None] * x_head
    target = out + (token * heads + head[:, None]) * dim
    a = tl.load(source + column[None, :], mask).to(tl.float32)
    b = tl.load(source + half + column[None, :], mask).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(target + column[None, :], (a * cos_a + b * sin_a).to(kind), mask)
    tl.store(target + half + column[None, :], (b * cos_b + a * sin_b).to(kind), mask)
    if REST:
        kept = width + tl.arange(0, REST)[None, :]
        beyond = (head < heads)[:, None] & (kept < dim)
        tl.store(target + kept, tl.load(source + kept, beyond), beyond)


def _fake(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return x.new_empty(x.shape)


@operator("rotary(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor", _fake)
def _rotary(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    tokens, heads, dim = x.shape
    out = x.new_empty(x.shape)
    if not out.numel():
        return out
    width = cos.shape[-1]
    use = dict(choice("rotary", x.device, tokens=tokens))
    per_program = min(use.pop("HEADS"), triton.next_power_of_2(heads))
    rotary_turn[(tokens, triton.cdiv(heads, per_program))](
        x,
        cos,
        sin,
        out,
        heads,
        x.stride(0),
        x.stride(1),
        dim,
        width,
        BACK=back,
        HEADS=per_program,
        HALF=triton.next_power_of_2(width // 2),
        REST=triton.next_power_of_2(dim - width) if dim > width else 0,
        **use,
    )
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        out: Tensor = _rotary(x, cos, sin, False)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        return _rotary(grad if grad.stride(-1) == 1 else grad.contiguous(), cos, sin, True), None, None


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, h, D] -> [T, h, D], dense: op `rotary`, in float32 and rounded once. Gradients by the angles are left to torch."""
    width = cos.shape[-1]
    if (
        not takes(x, cos, sin)
        or x.dim() != 3
        or x.stride(2) != 1
        or not 0 < width <= x.shape[2]
        or cos.shape != (x.shape[0], 1, width)
        or sin.shape != cos.shape
        or not (cos.is_contiguous() and sin.is_contiguous())
        or differentiates(cos, sin)
    ):
        return ops.rotary(x, cos, sin)
    if not differentiates(x):
        plain: Tensor = _rotary(x, cos, sin, False)
        return plain
    out: Tensor = _Rotary.apply(x, cos, sin)
    return out


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the rotation, for models of a dtype that the kernel takes."""
    return {"rotary": rotary} if dtype in TYPES else {}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernel is launched."""
    for dtype in TYPES.values():
        signature = dict.fromkeys(("x", "cos", "sin", "out"), f"*{dtype}")
        signature |= dict.fromkeys(("heads", "x_token", "x_head", "dim", "width"), "i32")
        for back in (False, True):
            for rest in (0, 64):
                constants = {"BACK": back, "HEADS": 16, "HALF": 32, "REST": rest}
                name = f"rotary{'.backward' * back}[{dtype},{'part' if rest else 'whole'}]"
                yield Variant(name, rotary_turn, signature, constants, {"num_warps": 4})
