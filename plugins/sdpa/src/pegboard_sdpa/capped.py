"""Attention with a soft cap on its logits, which torch's scaled_dot_product_attention has not, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pegboard.types import AttentionSpec

_BLOCK = 128
"""Queries whose logits are in memory at once."""


def capped_attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """Return causal attention, [B, num_heads, n, D] in the dtype of q; logits and sums are float32 at least.

    q: [B, num_heads, n, D], the last n tokens of the keys' sequences. k, v: [B, num_kv_heads, L, D].
    Nothing of the size n * L is kept for the backward pass, which computes each block of logits again.
    """
    out: Tensor = _Capped.apply(q, k, v, spec)
    return out


def capped_rows(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, mask: Tensor) -> Tensor:
    """Return attention of one query each, [B, num_kv_heads, heads sharing a key, D]; q is of that shape, k, v as above.

    mask: bool, broadcast to [B, num_kv_heads, heads sharing a key, L].
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = _capped_logits(q.to(wide), k.to(wide), spec).masked_fill(~mask, -torch.inf)
    return (logits.softmax(-1) @ v.to(wide)).to(q.dtype)


def _capped_logits(q: Tensor, k: Tensor, spec: AttentionSpec) -> Tensor:
    assert spec.softcap is not None
    return (q @ k.transpose(-1, -2)).mul_(spec.scale / spec.softcap).tanh_().mul_(spec.softcap)


def _blocks(queries: int, keys: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of queries with the keys that any of them sees."""
    past = keys - queries
    for begin in range(0, queries, _BLOCK):
        end = min(begin + _BLOCK, queries)
        first = 0 if window is None else max(0, past + begin - window + 1)
        yield slice(begin, end), slice(first, past + end)


def _weights(q: Tensor, k: Tensor, spec: AttentionSpec, rows: slice, seen: slice, past: int) -> tuple[Tensor, Tensor]:
    """Return weights and capped logits of a block, [B, num_kv_heads, shared, rows, keys], as far as queries see keys."""
    logits = _capped_logits(q, k.unsqueeze(2), spec)
    queries = torch.arange(past + rows.start, past + rows.stop, device=q.device)[:, None]
    keys = torch.arange(seen.start, seen.stop, device=q.device)
    hidden = keys > queries
    if spec.window is not None:
        hidden |= keys <= queries - spec.window
    return logits.masked_fill(hidden, -torch.inf).softmax(-1), logits


class _Capped(torch.autograd.Function):
    """The formulae of the backward pass: d logits = P * (dP - sum(dP * P)), through the cap by 1 - (logits / softcap)^2."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.spec = spec
        wide = torch.promote_types(q.dtype, torch.float32)
        grouped, k, v = q.unflatten(1, (k.shape[1], -1)), k.to(wide), v.to(wide)
        out, past = torch.empty_like(grouped), k.shape[2] - q.shape[2]
        for rows, seen in _blocks(q.shape[2], k.shape[2], spec.window):
            block = grouped[:, :, :, rows].to(wide)
            weights, _ = _weights(block, k[:, :, seen], spec, rows, seen, past)
            out[:, :, :, rows] = (weights @ v[:, :, seen].unsqueeze(2)).to(q.dtype)
        return out.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (q, k, v), spec = ctx.saved_tensors, ctx.spec
        dtype, wide, shared = q.dtype, torch.promote_types(q.dtype, torch.float32), (k.shape[1], -1)
        grouped, grad, k, v = q.unflatten(1, shared), grads[0].unflatten(1, shared), k.to(wide), v.to(wide)
        d_q, d_k, d_v = torch.empty_like(grouped), torch.zeros_like(k), torch.zeros_like(v)
        past = k.shape[2] - q.shape[2]
        for rows, seen in _blocks(q.shape[2], k.shape[2], spec.window):
            block, upstream = grouped[:, :, :, rows].to(wide), grad[:, :, :, rows].to(wide)
            weights, logits = _weights(block, k[:, :, seen], spec, rows, seen, past)
            # Heads that share keys add up: they are rows of one product.
            d_v[:, :, seen] += weights.flatten(2, 3).transpose(-1, -2) @ upstream.flatten(2, 3)
            d_weights = upstream @ v[:, :, seen].unsqueeze(2).transpose(-1, -2)
            d_logits = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True))
            d_logits *= (1 - (logits / spec.softcap).square()) * spec.scale
            d_q[:, :, :, rows] = (d_logits @ k[:, :, seen].unsqueeze(2)).to(dtype)
            d_k[:, :, seen] += d_logits.flatten(2, 3).transpose(-1, -2) @ block.flatten(2, 3)
        return d_q.flatten(1, 2), d_k.to(dtype), d_v.to(dtype), None
