"""The ops of `pegboard.ops`, one output element's formula at a time where that is bearable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[T, K] x [N, K] -> [T, N]: each output is the sum over k of x[t, k] * weight[n, k]."""
    out = (x.double()[:, None, :] * weight.double()[None, :, :]).sum(-1)
    return out if bias is None else out + bias.double()


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """[T] int64 x [V, H] -> [T, H]: row ids[t] of the weight."""
    rows = [weight[int(i)].double() for i in ids]
    return torch.stack(rows) if rows else weight.double()[:0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., H] -> [..., H]: x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467, equation 4)."""
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def offset_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., H] -> [..., H]: x / sqrt(mean(x^2) + eps) * (1 + weight)."""
    return rms_norm(x, 1 + weight.double(), eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """[T, H] twice -> (norm of the sum, the sum).

    The sum is rounded to the dtype of x before it is normed, as the residual stream holds it.
    """
    total = x + residual
    return rms_norm(total, weight, eps), total.double()


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, h, D] -> [T, h, D]: dimensions i and i + R/2 are one plane, turned by its angle (arXiv:2104.09864, equation 15).

    cos, sin: [T, 1, R], sin with its first half negated; dimensions from R on stay as they are.
    """
    half = cos.shape[-1] // 2
    a, b, kept = x[..., :half].double(), x[..., half : 2 * half].double(), x[..., 2 * half :].double()
    cosine, sine = cos[..., half:].double(), sin[..., half:].double()
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine, kept), -1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]: gate / (1 + exp(-gate)) * up, gate being the first half (arXiv:2002.05202, equation 6)."""
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half].double(), gate_up[..., half:].double()
    return gate / (1 + (-gate).exp()) * up


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]: gate / 2 * (1 + tanh(sqrt(2 / pi) (gate + 0.044715 gate^3))) * up (arXiv:1606.08415, section 2)."""
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half].double(), gate_up[..., half:].double()
    return gate / 2 * (1 + (math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)).tanh()) * up


def moe_route(logits: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """[T, E] -> ids [T, k] int64 and weights [T, k]: exp(logit) / sum of all, of the k greatest; of their own sum by `renormalise`."""
    wide = logits.double()
    ids = wide.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights = (wide - wide.amax(-1, keepdim=True)).exp()
    chosen = weights.gather(1, ids)
    return ids, chosen / (chosen if renormalise else weights).sum(-1, keepdim=True)


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """[N, K] x [E, O, K] -> [N, O]: row n times the matrix of the first expert whose end is beyond n."""
    bounds = ends.tolist()
    experts = [next(e for e, end in enumerate(bounds) if n < end) for n in range(x.shape[0])]
    rows = [linear(x[n : n + 1], weight[e])[0] for n, e in enumerate(experts)]
    return torch.stack(rows) if rows else x.double() @ weight[0].double().t()


def moe(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str = "silu") -> Tensor:
    """[T, H] -> [T, H]: row by row and expert by expert, weight * down(activation(gate) * up) (arXiv:2401.04088, section 2.1)."""
    gated = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}[activation]
    rows = []
    for t in range(x.shape[0]):
        total = torch.zeros_like(x[t], dtype=torch.float64)
        for place, expert in enumerate(ids[t].tolist()):
            inner = gated(linear(x[t : t + 1], gate_up[expert]))
            total = total + weights[t, place].double() * linear(inner, down[expert])[0]
        rows.append(total)
    # No row still depends on everything, with gradients of zero.
    return (
        torch.stack(rows) if rows else x.double() + 0 * (gate_up.double().sum() + down.double().sum() + weights.sum())
    )


def logits_sums(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """[M, V] x [M] -> log of the sum of exp(capped logit) over a row, and the capped logit of its target, 0 if that is no column."""
    wide = _capped(logits, softcap)
    zero = wide.new_zeros(())
    picked = [wide[i, t] if 0 <= t < wide.shape[1] else zero for i, t in enumerate(targets.tolist())]
    return wide.exp().sum(-1).log(), torch.stack(picked) if picked else wide.sum(-1)


def logits_slope_(
    logits: Tensor, targets: Tensor, norm: Tensor, factor: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """[M, V] -> [M, V]: factor times the derivative, by the logits, of norm less the capped logit of the target."""
    wide = _capped(logits, softcap)
    found = (wide - norm.double()[:, None]).exp()
    for i, t in enumerate(targets.tolist()):
        if 0 <= t < wide.shape[1]:
            found[i, t] -= 1
    if softcap is not None:
        found = found * (1 - (wide / softcap).square())
    return found if factor is None else found * factor.double()[:, None]


def cross_entropy_(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """[M, V] x [M] -> log p(target) [M] and the derivative of its negative by the logits [M, V]."""
    norm, picked = logits_sums(logits, targets, softcap)
    return picked - norm, logits_slope_(logits, targets, norm, None, softcap)


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Every element times the factor."""
    return x.double() * factor.double()


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[N, K] + [M, N]^T x [M, K] -> [N, K]."""
    return total.double() + (a.double()[:, :, None] * b.double()[:, None, :]).sum(0)


def norm_linear(
    x: Tensor, residual: Tensor, scales: Tensor, eps: float, offset: bool, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[T, H] twice -> (the product of the norm of the sum [T, N], the sum)."""
    normed, total = add_rms_norm(x, residual, scales.double() + offset, eps)
    return linear(normed, weight, bias), total


def gated_linear(gate_up: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """[T, 2 I] -> [T, N]: the product of activation(gate) * up."""
    return linear({"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}[activation](gate_up), weight, bias)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits.double() if softcap is None else softcap * (logits.double() / softcap).tanh()


OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            linear,
            embedding,
            rms_norm,
            offset_rms_norm,
            add_rms_norm,
            rotary,
            silu_mul,
            gelu_tanh_mul,
            moe_route,
            grouped_linear,
            moe,
            logits_sums,
            logits_slope_,
            cross_entropy_,
            add_product_,
            scaled,
            norm_linear,
            gated_linear,
        )
    }
)
"""Oracle of each op of the core, by name."""
