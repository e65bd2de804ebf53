"""(token, expert) pairs in the order of their experts, on the device: nothing is read back, so that a graph can hold it.

A pair is a place in expert_ids [T, K], counted row by row. A pair whose id is no expert (padding, an expert of another process) is in
no expert's part. The order within an expert is that of the pairs: the same input gives the same order always.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEW = 4096
"""Pairs up to which each expert looks for its own; with more, pairs are counted in chunks first."""


@triton.jit
def order_few(ids, order, places, offsets, pairs, EXPERTS: tl.constexpr, CHUNK: tl.constexpr, PLACES: tl.constexpr):
    """One program an expert: it counts the pairs of the experts before it and writes its own behind them."""
    expert = tl.program_id(0)
    start = 0
    for first in range(0, pairs, CHUNK):
        at = first + tl.arange(0, CHUNK)
        found = tl.load(ids + at, mask=at < pairs, other=-1)
        start += tl.sum(((found >= 0) & (found < expert)).to(tl.int32), 0)
    tl.store(offsets + expert, start)
    for first in range(0, pairs, CHUNK):
        at = first + tl.arange(0, CHUNK)
        own = (tl.load(ids + at, mask=at < pairs, other=-1) == expert).to(tl.int32)
        place = start + tl.cumsum(own, 0) - 1
        tl.store(order + place, at, mask=own > 0)
        if PLACES:
            tl.store(places + at, place, mask=own > 0)
        start += tl.sum(own, 0)
    if expert == EXPERTS - 1:
        tl.store(offsets + EXPERTS, start)


@triton.jit
def count_chunks(ids, counts, pairs, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """One program a chunk: how many of its pairs each expert has, counts [chunks, WIDTH]."""
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    found = tl.load(ids + at, mask=at < pairs, other=-1)
    expert = tl.arange(0, WIDTH)
    bins = tl.sum(((found[:, None] == expert[None, :]) & (expert < EXPERTS)[None, :]).to(tl.int32), 0)
    tl.store(counts + tl.program_id(0) * WIDTH + expert, bins)


@triton.jit
def place_chunks(
    ids,
    counts,
    order,
    places,
    offsets,
    pairs,
    chunks,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
    PLACES: tl.constexpr,
):
    """One program a chunk: where each of its pairs stands."""
    chunk = tl.program_id(0)
    expert = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.int32)
    before = tl.zeros([WIDTH], tl.int32)
    for first in range(0, chunks, ROWS):
        row = first + tl.arange(0, ROWS)
        block = tl.load(counts + row[:, None] * WIDTH + expert[None, :], mask=row[:, None] < chunks, other=0)
        total += tl.sum(block, 0)
        before += tl.sum(tl.where(row[:, None] < chunk, block, 0), 0)
    start = tl.cumsum(total, 0) - total
    if chunk == 0:
        tl.store(offsets + expert, start, mask=expert < EXPERTS)
        tl.store(offsets + EXPERTS, tl.sum(total, 0))
    start += before
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    found = tl.load(ids + at, mask=at < pairs, other=-1)
    known = (found >= 0) & (found < EXPERTS)
    place = tl.sum(tl.where(found[:, None] == expert[None, :], start[None, :], 0), 1)
    for first in range(0, CHUNK, PART):
        other = chunk * CHUNK + first + tl.arange(0, PART)
        theirs = tl.load(ids + other, mask=other < pairs, other=-1)
        earlier = (found[:, None] == theirs[None, :]) & (other[None, :] < at[:, None])
        place += tl.sum(earlier.to(tl.int32), 1)
    tl.store(order + place, at, mask=known)
    if PLACES:
        tl.store(places + at, place, mask=known)


def order_pairs(expert_ids: Tensor, experts: int, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (order [P] int32, offsets [E + 1] int32): pairs of expert e are order[offsets[e] : offsets[e + 1]].

    expert_ids: [T, K] int32 or int64, contiguous; P = T K. What lies behind offsets[E] is undefined. places: [P] int32, written with
    where each pair stands in the order; those in no expert's part stay as they are.
    """
    pairs = expert_ids.numel()
    order = torch.empty(pairs, dtype=torch.int32, device=expert_ids.device)
    offsets = torch.empty(experts + 1, dtype=torch.int32, device=expert_ids.device)
    if pairs <= _FEW:
        chunk = min(triton.next_power_of_2(max(pairs, 16)), 1024)
        order_few[(experts,)](
            expert_ids,
            order,
            places,
            offsets,
            pairs,
            EXPERTS=experts,
            CHUNK=chunk,
            PLACES=places is not None,
            num_warps=4,
        )
        return order, offsets
    width = triton.next_power_of_2(experts)
    chunk = 256 if pairs <= 16384 else 512
    chunks = triton.cdiv(pairs, chunk)
    counts = torch.empty(chunks, width, dtype=torch.int32, device=expert_ids.device)
    count_chunks[(chunks,)](expert_ids, counts, pairs, EXPERTS=experts, WIDTH=width, CHUNK=chunk, num_warps=4)
    rows, part = max(4096 // width, 1), 16
    place_chunks[(chunks,)](
        expert_ids,
        counts,
        order,
        places,
        offsets,
        pairs,
        chunks,
        EXPERTS=experts,
        WIDTH=width,
        CHUNK=chunk,
        ROWS=rows,
        PART=part,
        PLACES=places is not None,
        num_warps=8,
    )
    return order, offsets
