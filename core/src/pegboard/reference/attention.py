"""Attention, query by query and head by head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout


def attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """Return the attention of one sequence, [n, num_heads, D] float64.

    q: [n, num_heads, D], the queries of its last n tokens. k, v: [L, num_kv_heads, D], keys and values of all its L tokens.
    """
    q, k, v = q.double(), k.double(), v.double()
    shared = spec.num_heads // spec.num_kv_heads
    rows = [
        torch.stack(
            [
                _one(q[i, head], k[:, head // shared], v[:, head // shared], i, len(q), spec)
                for head in range(spec.num_heads)
            ]
        )
        for i in range(len(q))
    ]
    return torch.stack(rows) if rows else q


def ragged_attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, lens: Sequence[int]) -> Tensor:
    """Return the attention of whole sequences laid end to end, [T, num_heads, D] float64. k, v: [T, num_kv_heads, D]."""
    sizes = list(lens)
    parts = [attention(*part, spec) for part in zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)]
    return torch.cat(parts) if parts else q.double()


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, inputs: AttentionInputs, cache: KVCache
) -> Tensor:
    """Return the attention of a step whose sequences' past lies in the cache, [T, num_heads, D] float64.

    k, v: [T, num_kv_heads, D], the new tokens' own, which need not be in the cache yet; it is not written.
    """
    if inputs.block_table is None:
        raise ValueError("a paged batch has a block table")
    parts, start = [], 0
    for index, (new, length) in enumerate(zip(inputs.query_lens, inputs.seq_lens, strict=True)):
        pages = inputs.pages(index, cache.layout.page_size)
        rows = slice(start, start + new)
        past = [
            torch.stack([token(tensors[spec.layer], cache.layout, pages, t) for t in range(length - new)])
            if length > new
            else fresh[:0]
            for tensors, fresh in ((cache.k, k), (cache.v, v))
        ]
        keys, values = (torch.cat((p.double(), x[rows].double())) for p, x in zip(past, (k, v), strict=True))
        parts.append(attention(q[rows], keys, values, spec))
        start += new
    return torch.cat(parts) if parts else q.double()


def token(tensor: Tensor, layout: KVLayout, pages: Sequence[int], index: int) -> Tensor:
    """Return a view of what a cache tensor of `layout` holds of a sequence's token `index`, [num_kv_heads, D]."""
    page, offset = pages[index // layout.page_size], index % layout.page_size
    return tensor[page, offset] if layout.order == "PSHD" else tensor[page, :, offset]


def _one(q: Tensor, k: Tensor, v: Tensor, index: int, count: int, spec: AttentionSpec) -> Tensor:
    """One head of query `index` of the sequence's last `count` tokens. q: [D]. k, v: [L, D]. Returns [D]."""
    position = len(k) - count + index
    first = 0 if spec.window is None else max(0, position - spec.window + 1)
    end = position + 1 if spec.causal else len(k)
    logits = (k[first:end] * q).sum(-1) * spec.scale
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    weights = (logits - logits.max()).exp()
    return (weights[:, None] * v[first:end]).sum(0) / weights.sum()
