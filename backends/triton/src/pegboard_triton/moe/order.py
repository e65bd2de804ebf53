"""(token, expert) pairs in the order of their experts, on the device: nothing is read back, so that a graph can hold it.

A pair is a place in expert_ids [T, K], counted row by row. A pair whose id is no expert (padding, an expert of another process) is in
no expert's part. The order within an expert is that of the pairs: the same input gives the same order always.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.kernel import kernel
from pegboard_triton.tuning import choice

_FEW = 2048
"""Pairs up to which each expert looks for its own; with more, pairs are counted in chunks first."""

_PART, _MOST_CHUNKS, _SHARE = 1024, 128, 8
"""Pairs that a program looks at at once, chunks at most, and experts that a program places."""

CHUNKS, RANKS = range(2)
"""Ways for many pairs: expert by expert in long chunks, or each pair by how many of its expert come before it in a short one."""

_RANKED, _STEP, _COLUMNS = 256, 32, 16
"""Pairs of a short chunk, how many of them all are compared with at once, and experts whose starts a program adds up."""


@kernel
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


@kernel
def count_chunks(
    ids, counts, pairs, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr
):
    """One program a chunk: how many of its pairs each expert has, counts [chunks, WIDTH]. PART: pairs that are looked at at once."""
    bins = tl.zeros([WIDTH], tl.int32)
    for first in range(0, CHUNK, PART):
        at = tl.program_id(0) * CHUNK + first + tl.arange(0, PART)
        found = tl.load(ids + at, mask=at < pairs, other=-1).to(tl.int32)
        known = (found >= 0) & (found < EXPERTS)
        bins += tl.histogram(tl.where(known, found, 0), WIDTH, mask=known)
    tl.store(counts + tl.program_id(0) * WIDTH + tl.arange(0, WIDTH), bins)


@kernel
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
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    SHARE: tl.constexpr,
    PLACES: tl.constexpr,
):
    """One program a chunk and SHARE experts: it writes their pairs of that chunk behind those of earlier chunks."""
    chunk = tl.program_id(0)
    index = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.int32)
    before = tl.zeros([WIDTH], tl.int32)
    for first in range(0, chunks, ROWS):
        row = first + tl.arange(0, ROWS)
        block = tl.load(counts + row[:, None] * WIDTH + index[None, :], mask=row[:, None] < chunks, other=0)
        total += tl.sum(block, 0)
        before += tl.sum(tl.where(row[:, None] < chunk, block, 0), 0)
    starts = tl.cumsum(total, 0) - total
    if (chunk == 0) & (tl.program_id(1) == 0):
        tl.store(offsets + index, starts, mask=index < EXPERTS)
        tl.store(offsets + EXPERTS, tl.sum(total, 0))
    starts += before
    for expert in range(tl.program_id(1) * SHARE, tl.program_id(1) * SHARE + SHARE):
        start = tl.sum(tl.where(index == expert, starts, 0), 0)
        for first in range(0, CHUNK, PART):
            at = chunk * CHUNK + first + tl.arange(0, PART)
            own = (tl.load(ids + at, mask=(at < pairs) & (expert < EXPERTS), other=-1) == expert).to(tl.int32)
            place = start + tl.cumsum(own, 0) - 1
            tl.store(order + place, at, mask=own > 0)
            if PLACES:
                tl.store(places + at, place, mask=own > 0)
            start += tl.sum(own, 0)


@kernel
def start_chunks(
    counts,
    starts,
    offsets,
    chunks,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program COLUMNS experts: where the pairs of each chunk begin, starts [chunks, WIDTH], from counts [chunks, WIDTH]."""
    index = tl.arange(0, WIDTH)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([WIDTH], tl.int32)
    for first in range(0, chunks, ROWS):
        row = first + tl.arange(0, ROWS)
        total += tl.sum(tl.load(counts + row[:, None] * WIDTH + index[None, :], mask=row[:, None] < chunks, other=0), 0)
    # Those of the experts before each of ours.
    begin = tl.sum(tl.where(index[None, :] < column[:, None], total[None, :], 0), 1)
    tl.store(offsets + column, begin, mask=column < EXPERTS)
    if tl.program_id(0) == 0:
        tl.store(offsets + EXPERTS, tl.sum(total, 0))
    for first in range(0, chunks, ROWS):
        row = first + tl.arange(0, ROWS)
        place = row[:, None] * WIDTH + column[None, :]
        own = tl.load(counts + place, mask=row[:, None] < chunks, other=0)
        tl.store(starts + place, begin[None, :] + tl.cumsum(own, 0) - own, mask=row[:, None] < chunks)
        begin += tl.sum(own, 0)


@kernel
def place_ranked(
    ids,
    starts,
    order,
    places,
    pairs,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    PLACES: tl.constexpr,
):
    """One program a chunk: each pair goes behind those of its expert that come before it there. STEP: pairs that are compared at once."""
    begin = tl.program_id(0) * CHUNK
    index = tl.arange(0, CHUNK)
    found = tl.load(ids + begin + index, mask=begin + index < pairs, other=-1).to(tl.int32)
    known = (found >= 0) & (found < EXPERTS)
    rank = tl.zeros([CHUNK], tl.int32)
    for first in range(0, CHUNK, STEP):
        other = first + tl.arange(0, STEP)
        theirs = tl.load(ids + begin + other, mask=begin + other < pairs, other=-1).to(tl.int32)
        same = (theirs[None, :] == found[:, None]) & (other[None, :] < index[:, None])
        rank += tl.sum(same.to(tl.int32), 1)
    place = tl.load(starts + tl.program_id(0) * WIDTH + found, mask=known, other=0) + rank
    tl.store(order + place, begin + index, mask=known)
    if PLACES:
        tl.store(places + begin + index, place, mask=known)


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
    # Histograms have at least as many bins as a warp of any vendor has lanes.
    width = max(triton.next_power_of_2(experts), 64)
    if choice("moe_order", expert_ids.device, pairs=pairs)["way"] == RANKS:
        _by_rank(expert_ids, experts, width, order, offsets, places)
        return order, offsets
    chunk = max(_PART, triton.next_power_of_2(triton.cdiv(pairs, _MOST_CHUNKS)))
    chunks = triton.cdiv(pairs, chunk)
    counts = torch.empty(chunks, width, dtype=torch.int32, device=expert_ids.device)
    sizes = {"EXPERTS": experts, "WIDTH": width, "CHUNK": chunk, "PART": _PART, "num_warps": 4}
    count_chunks[(chunks,)](expert_ids, counts, pairs, **sizes)
    place_chunks[(chunks, triton.cdiv(experts, _SHARE))](
        expert_ids,
        counts,
        order,
        places,
        offsets,
        pairs,
        chunks,
        ROWS=max(2048 // width, 1),
        SHARE=_SHARE,
        PLACES=places is not None,
        **sizes,
    )
    return order, offsets


def _by_rank(
    expert_ids: Tensor, experts: int, width: int, order: Tensor, offsets: Tensor, places: Tensor | None
) -> None:
    """Write `order`, `offsets` and `places` as of `order_pairs`. width: a power of two, of experts at least."""
    pairs = expert_ids.numel()
    chunks = triton.cdiv(pairs, _RANKED)
    counts, starts = torch.empty(2, chunks, width, dtype=torch.int32, device=expert_ids.device).unbind()
    sizes = {"EXPERTS": experts, "WIDTH": width, "num_warps": 4}
    count_chunks[(chunks,)](expert_ids, counts, pairs, CHUNK=_RANKED, PART=_RANKED, **sizes)
    rows = max(4096 // width, 1)
    start_chunks[(width // _COLUMNS,)](counts, starts, offsets, chunks, ROWS=rows, COLUMNS=_COLUMNS, **sizes)
    place_ranked[(chunks,)](
        expert_ids, starts, order, places, pairs, CHUNK=_RANKED, STEP=_STEP, PLACES=places is not None, **sizes
    )
