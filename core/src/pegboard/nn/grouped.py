"""The ops of a mixture of experts: choosing experts, and products in which each row has the matrix of its expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.ops import gelu_tanh_mul, register, silu_mul

GATED: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}
"""Activation -> gate_up [T, 2 I], gate first -> [T, I]."""


@register(
    "moe_route",
    "(logits [T, E], k, renormalise) -> (ids [T, k] int64, each row's likeliest first, weights [T, k] float32): softmax over all "
    "experts in float32, divided by the sum of the k where `renormalise`",
)
def moe_route(logits: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Top-k routing (arXiv:1701.06538, section 2.1; the order softmax, then top-k is Switch's). Differentiable by the weights."""
    probs = logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32))
    weights, ids = probs.topk(k, -1)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids, weights


@register(
    "grouped_linear",
    "(x [N, K], rows sorted by expert, weight [E, O, K], ends [E] int32: rows before the end of each expert) -> [N, O]",
)
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Row n times the transposed matrix of its expert. Differentiable in x and weight, of which only what is needed is computed."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        out: Tensor = _GroupedLinear.apply(x, weight, ends)  # type: ignore[no-untyped-call]
        return out
    return _product(x, weight, ends)


_LIBRARY = torch.library.Library("pegboard", "DEF")


def one_operation(schema: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Make a function, where it computes on the host and without gradients, one operation of torch.

    For whoever records operations to do them again: which experts are read is another question at each replay. The function must use
    torch's operations alone. schema: as torch's, of positional arguments: "name(Tensor x, int k) -> Tensor".
    """

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, function, "CPU")
        operation = getattr(torch.ops.pegboard, name)
        tensor = next(place for place, kind in enumerate(schema.split(",")) if "Tensor" in kind)

        @wraps(function)
        def called(*args: Any) -> Tensor:
            on_host = args[tensor].device.type == "cpu" and not torch.is_grad_enabled()
            out: Tensor = operation(*args) if on_host else function(*args)
            return out

        return called

    return wrap


@register(
    "moe",
    "(x [T, H], gate_up [E, 2 I, H], gate first, down [E, H, I], ids [T, k] int32 or int64, weights [T, k] float32, activation: "
    "'silu' or 'gelu_tanh') -> [T, H]: the sum over a row's experts of weight * down(activation(gate(x)) * up(x))",
)
@one_operation(
    'moe(Tensor x, Tensor gate_up, Tensor down, Tensor ids, Tensor weights, str activation="silu") -> Tensor'
)
def moe(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str = "silu") -> Tensor:
    """Rows are sorted by expert, so that each expert that has any is read once; the sum over a row's experts is made in float32.

    Differentiable in x, gate_up, down and weights.
    """
    if ids.shape[0] != 1 or x.device.type != "cpu" or torch.is_grad_enabled():
        return _sorted(x, gate_up, down, ids, weights, activation)
    gated = GATED[activation]
    out = torch.stack([F.linear(gated(F.linear(x, gate_up[e])), down[e])[0] for e in ids[0].tolist()])
    wide = torch.promote_types(out.dtype, torch.float32)
    summed: Tensor = weights.to(wide) @ out.to(wide)
    return summed.to(x.dtype)


def _sorted(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
    order, ends = sort_by_expert(ids, gate_up.shape[0])
    rows = x.index_select(0, order // ids.shape[1])
    out = grouped_linear(GATED[activation](grouped_linear(rows, gate_up, ends)), down, ends)
    return combine(out, order, weights)


def sort_by_expert(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """[T, k] -> (order [T k] int64: which place of the flat ids comes where, rows of one expert in their order; ends [experts] int32)."""
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    # Ends from sorted ids: bincount would be told on the host how many there are.
    ends = torch.searchsorted(flat.index_select(0, order), torch.arange(experts, device=flat.device), right=True)
    return order, ends.to(torch.int32)


def combine(out: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """[T k, H] sorted by expert, weights [T, k] -> [T, H], each row's weighted sum."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    # Gathered back and summed in a fixed order: adding at indices would depend on the order of threads.
    each = out.index_select(0, back).unflatten(0, weights.shape)
    summed: Tensor = (each * weights.to(torch.promote_types(out.dtype, torch.float32))[:, :, None]).sum(1)
    return summed.to(out.dtype)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return _product(x, weight, ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad = grads[0].contiguous()
        x, weight, ends = ctx.saved_tensors
        d_x = _product(grad, weight.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None
        d_weight = grouped_outer(grad, x, ends) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, None


def _product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """[N, K] x [E, O, K] -> [N, O]."""
    if _native(x, weight.shape[1], x.shape[1]):
        out: Tensor = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
        return out
    out = x.new_empty(x.shape[0], weight.shape[1])
    for expert, start, end in expert_rows(ends):
        torch.mm(x[start:end], weight[expert].t(), out=out[start:end])
    return out


def grouped_outer(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """[N, O], [N, K] -> [E, O, K]: the sum over each expert's rows of grad[n, o] * x[n, k]."""
    if _native(x, grad.shape[1], x.shape[1]):
        out: Tensor = F.grouped_mm(grad.t(), x, offs=ends)
        return out
    out = x.new_zeros(ends.shape[0], grad.shape[1], x.shape[1])
    for expert, start, end in expert_rows(ends):
        torch.mm(grad[start:end].t(), x[start:end], out=out[expert])
    return out


def expert_rows(ends: Tensor, *, empty: bool = False) -> Iterator[tuple[int, int, int]]:
    """Yield (expert, start, end) of every expert that has rows, or by `empty` of every one. Waits for the device."""
    # Read as what a recorder of graphs sees: a list is made behind its back.
    int(ends[-1])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start or empty:
            yield expert, start, end
        start = end


def _native(x: Tensor, out_features: int, in_features: int) -> bool:
    """Whether torch's grouped product takes these without the host knowing the ends. On the CPU it is a loop like ours."""
    sizes = (out_features * x.element_size(), in_features * x.element_size())
    return x.device.type != "cpu" and x.dtype == torch.bfloat16 and all(size % 16 == 0 for size in sizes)
