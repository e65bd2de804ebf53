"""Gated activations (arXiv:2002.05202): silu(gate) * up and gelu(gate) * up, and their gradients.

Both are gate * sigmoid(z) * up: z is the gate itself for SiLU, and 2 sqrt(2 / pi) (gate + 0.044715 gate^3) for GELU's tanh
approximation, since (1 + tanh(u)) / 2 = sigmoid(2 u).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
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


@triton.jit
def _sigmoid_of(gate, GELU: tl.constexpr):
    if GELU:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    else:
        z = gate
    return 1.0 / (1.0 + tl.exp(-z))


@kernel
def gated_forward(gate_up, out, size, stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    gate = tl.load(gate_up + row * stride + column, mask).to(tl.float32)
    up = tl.load(gate_up + row * stride + size + column, mask).to(tl.float32)
    value = gate * _sigmoid_of(gate, GELU) * up
    tl.store(out + row * size + column, value.to(out.dtype.element_ty), mask)


@kernel
def gated_backward(
    grad, gate_up, out, size, stride, out_stride, GELU: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr
):
    """out: [T, 2 size]; it may be gate_up itself, since each number is read by the program that writes it. AGAIN: the gated values are
    computed once more, and written over grad.
    """
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    gate = tl.load(gate_up + row * stride + column, mask).to(tl.float32)
    up = tl.load(gate_up + row * stride + size + column, mask).to(tl.float32)
    upstream = tl.load(grad + row * size + column, mask).to(tl.float32)
    sigmoid = _sigmoid_of(gate, GELU)
    activated = gate * sigmoid
    if GELU:
        inner = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
    else:
        inner = 1.0
    slope = sigmoid + activated * (1.0 - sigmoid) * inner
    kind = out.dtype.element_ty
    tl.store(out + row * out_stride + column, (upstream * up * slope).to(kind), mask)
    tl.store(out + row * out_stride + size + column, (upstream * activated).to(kind), mask)
    if AGAIN:
        tl.store(grad + row * size + column, (activated * up).to(kind), mask)


def _fake_forward(gate_up: Tensor, gelu: bool) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


@operator("gated(Tensor gate_up, bool gelu) -> Tensor", _fake_forward)
def _gated(gate_up: Tensor, gelu: bool) -> Tensor:
    rows, both = gate_up.shape
    size = both // 2
    out = gate_up.new_empty((rows, size))
    use = dict(choice("gated", gate_up.device, rows=rows))
    block = min(use.pop("BLOCK"), triton.next_power_of_2(max(size, 1)))
    programs = rows * triton.cdiv(size, block)
    if programs:
        gated_forward[(programs,)](gate_up, out, size, gate_up.stride(0), GELU=gelu, BLOCK=block, **use)
    return out


def _launch_backward(grad: Tensor, gate_up: Tensor, out: Tensor, gelu: bool, again: bool = False) -> None:
    rows, size = grad.shape
    use = dict(choice("gated_backward", gate_up.device, rows=rows))
    block = min(use.pop("BLOCK"), triton.next_power_of_2(max(size, 1)))
    programs = rows * triton.cdiv(size, block)
    if programs:
        gated_backward[(programs,)](
            grad, gate_up, out, size, gate_up.stride(0), out.stride(0), GELU=gelu, AGAIN=again, BLOCK=block, **use
        )


def _fake_backward(grad: Tensor, gate_up: Tensor, gelu: bool) -> Tensor:
    return torch.empty_like(gate_up, memory_format=torch.contiguous_format)


@operator("gated_backward(Tensor grad, Tensor gate_up, bool gelu) -> Tensor", _fake_backward)
def _gated_backward(grad: Tensor, gate_up: Tensor, gelu: bool) -> Tensor:
    out = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    _launch_backward(grad, gate_up, out, gelu)
    return out


def _fake_in_place(gate_up: Tensor, grad: Tensor, gelu: bool) -> None:
    return None


@operator("gated_backward_(Tensor(a!) gate_up, Tensor grad, bool gelu) -> ()", _fake_in_place)
def _gated_backward_in_place(gate_up: Tensor, grad: Tensor, gelu: bool) -> None:
    _launch_backward(grad, gate_up, gate_up, gelu)


@operator("gated_backward_again_(Tensor(a!) grad, Tensor gate_up, bool gelu) -> Tensor", _fake_backward)
def _gated_backward_again(grad: Tensor, gate_up: Tensor, gelu: bool) -> Tensor:
    """As `_gated_backward`; grad becomes the gated values."""
    out = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    _launch_backward(grad, gate_up, out, gelu, again=True)
    return out


@operator("gated_backward_all_(Tensor(a!) gate_up, Tensor(b!) grad, bool gelu) -> ()", _fake_in_place)
def _gated_backward_all(gate_up: Tensor, grad: Tensor, gelu: bool) -> None:
    """gate_up becomes its gradient, and grad the gated values."""
    _launch_backward(grad, gate_up, gate_up, gelu, again=True)


class _Gated(torch.autograd.Function):
    """Keeps its input alone. overwrites: the gradient is written over it, which saves the largest temporary of a layer."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, gelu: bool, overwrites: bool) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.gelu, ctx.overwrites = gelu, overwrites
        out: Tensor = _gated(gate_up, gelu)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gate_up,) = ctx.saved_tensors
        grad = grads[0].contiguous()
        if not ctx.overwrites:
            return _gated_backward(grad, gate_up, ctx.gelu), None, None
        gate_up = gate_up.detach()
        _gated_backward_in_place(gate_up, grad, ctx.gelu)
        # Whoever else kept the input for a backward pass of its own (or for a second one through this graph) is refused by autograd.
        torch.autograd.graph.increment_version(gate_up)
        return gate_up, None, None


class _Keep(torch.autograd.Function):
    """Keeps what the backward pass of `_GatedLinear` needs, before that computes: a checkpoint that runs a layer again for what was
    kept ends here, and leaves the gate and the product out.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        return gate_up.view_as(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _GatedLinear(torch.autograd.Function):
    """The product with the gated values, which are never kept: the backward pass makes them again on its way over gate and up.

    keeper: the node of a `_Keep`; None to keep gate_up and weight here.
    """

    @staticmethod
    def forward(
        ctx: Any, gate_up: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, overwrites: bool, keeper: Any
    ) -> Tensor:
        if keeper is None:
            ctx.save_for_backward(gate_up, weight)
        ctx.gelu, ctx.overwrites, ctx.keeper = gelu, overwrites, keeper
        return F.linear(_gated(gate_up, gelu), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, weight = ctx.saved_tensors if ctx.keeper is None else ctx.keeper.saved_tensors
        grad = grads[0]
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        inner = grad @ weight
        if ctx.overwrites:
            gate_up = gate_up.detach()
            _gated_backward_all(gate_up, inner, ctx.gelu)
            torch.autograd.graph.increment_version(gate_up)
        else:
            gate_up = _gated_backward_again(inner, gate_up, ctx.gelu)
        d_weight = grad.t() @ inner if needs_weight else None
        return gate_up, d_weight, grad.sum(0) if needs_bias else None, None, None, None


def _overwrites(gate_up: Tensor) -> bool:
    """Not where the caller may still look at it (a leaf, a view), nor under a compiler, which plans memory by itself."""
    return not (torch.compiler.is_compiling() or gate_up.is_leaf or gate_up._is_view())


def _run(gate_up: Tensor, gelu: bool) -> Tensor:
    if not differentiates(gate_up):
        plain: Tensor = _gated(gate_up, gelu)
        return plain
    out: Tensor = _Gated.apply(gate_up, gelu, _overwrites(gate_up))
    return out


def _fits(gate_up: Tensor) -> bool:
    return takes(gate_up) and gate_up.dim() == 2 and gate_up.shape[1] % 2 == 0 and gate_up.stride(1) == 1


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]: op `silu_mul`. The backward pass may write over an input that is another function's result."""
    return _run(gate_up, False) if _fits(gate_up) else ops.silu_mul(gate_up)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]: op `gelu_tanh_mul`. The backward pass may write over an input that is another function's result."""
    return _run(gate_up, True) if _fits(gate_up) else ops.gelu_tanh_mul(gate_up)


def gated_linear(gate_up: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """[T, 2 I] x [N, I] -> [T, N]: op `gated_linear`. With a gradient, no [T, I] is kept; otherwise as `silu_mul`."""
    gelu = activation == "gelu_tanh"
    if not _fits(gate_up) or weight.dtype != gate_up.dtype or not differentiates(gate_up, weight):
        return F.linear((gelu_tanh_mul if gelu else silu_mul)(gate_up), weight, bias)
    overwrites, keeper = _overwrites(gate_up), None
    if gate_up.requires_grad and not torch.compiler.is_compiling():
        gate_up = _Keep.apply(gate_up, weight)
        keeper = gate_up.grad_fn
    out: Tensor = _GatedLinear.apply(gate_up, weight, bias, gelu, overwrites, keeper)
    return out


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return both activations, and in training with the product after them, for models of a dtype that the kernels take."""
    if dtype not in TYPES:
        return {}
    joined = {"gated_linear": gated_linear} if phase == "train" and "gated_linear" in ops.registered() else {}
    return {"silu_mul": silu_mul, "gelu_tanh_mul": gelu_tanh_mul, **joined}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernels are launched."""
    for dtype in TYPES.values():
        for gelu, name in ((False, "silu_mul"), (True, "gelu_tanh_mul")):
            constants = {"GELU": gelu, "BLOCK": 1024}
            forward = {"gate_up": f"*{dtype}", "out": f"*{dtype}", "size": "i32", "stride": "i32"}
            yield Variant(f"{name}[{dtype}]", gated_forward, forward, constants, {"num_warps": 4})
            backward = {"grad": f"*{dtype}"} | forward | {"out_stride": "i32"}
            for again in (False, True):
                typed = constants | {"AGAIN": again}
                ending = f".backward{',again' * again}[{dtype}]"
                yield Variant(f"{name}{ending}", gated_backward, backward, typed, {"num_warps": 4})
