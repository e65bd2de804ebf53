"""Op `sample`: a token for each row in one launch; a program has a row.

Without cut-offs a row is read twice: for its greatest logit, and for the sums of blocks of weights, of which one is read again. top_k and
top_p look at the blocks with the greatest weights first: where what they keep is in those, as nearly always, the rest of the search is
among 16,384 numbers in registers. Where it is not, the row is read for every step of a bisection. Both find the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton.catalogue import Variant
from pegboard_triton.kernel import kernel
from pegboard_triton.operators import TYPES, operator, takes
from pegboard_triton.sampling.search import (
    WIDTH,
    fewest_blocks,
    kth_of,
    load_weights,
    mass_of,
    reaching,
    row_kth,
    row_mass,
    row_reaching,
)
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

KEPT = 128
"""Blocks that are looked at first."""

WIDEST = 1 << 19
"""Ids up to which the sums of a row's blocks are held at once."""

Column = np.ndarray[Any, Any] | None


@triton.jit
def _greatest(base, columns, BLOCK: tl.constexpr):
    """Return the greatest of a row, a number that is none where it holds one, and its first place."""
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = lane
    wrong = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        value = tl.load(base + start + lane, start + lane < columns, other=float("-inf")).to(tl.float32)
        higher = value > best
        best = tl.where(higher, value, best)
        place = tl.where(higher, start + lane, place)
        wrong |= (value != value).to(tl.int32)
    most = tl.max(best, 0)
    first = tl.min(tl.where(best == most, place, columns - 1), 0)
    return tl.where(tl.max(wrong, 0) > 0, float("nan"), most), first


@triton.jit
def _sum_blocks(
    base, sums, tops, columns, most, temperature, least, ROWS: tl.constexpr, W: tl.constexpr, TOPS: tl.constexpr
):
    """Write the sum of each block's weights that are not below `least`, and its greatest weight."""
    for start in range(0, columns, ROWS * W):
        row = tl.arange(0, ROWS)
        ids = start + row[:, None] * W + tl.arange(0, W)[None, :]
        weights = load_weights(base, ids, ids < columns, most, temperature)
        kept = tl.where(weights.to(tl.int32, bitcast=True) >= least, weights, 0.0)
        block = start // W + row
        inside = block * W < columns
        tl.store(sums + block, tl.sum(kept, 1), inside)
        if TOPS:
            tl.store(tops + block, tl.max(weights, 1), inside)


@triton.jit
def _at(sums, uniform, COUNT: tl.constexpr):
    """Return which of sums [COUNT], one after the other, a uniform number falls into, and how far in."""
    reached = tl.cumsum(sums.to(tl.float64), 0)
    target = uniform * tl.max(reached, 0)
    number = tl.minimum(tl.sum((reached <= target).to(tl.int32), 0), COUNT - 1)
    before = tl.sum(tl.where(tl.arange(0, COUNT) == number - 1, reached, 0.0), 0)
    return number, target - before


@triton.jit
def _within(weights, inner, W: tl.constexpr):
    """Return the place in a block of weights [W] where their running sum passes `inner`; one that has a weight."""
    reached = tl.cumsum(weights.to(tl.float64), 0)
    # These sums are not rounded as those of the blocks.
    inner = tl.minimum(inner, tl.max(reached, 0) * (1 - 1.1102230246251565e-16))
    return tl.minimum(tl.sum((reached <= inner).to(tl.int32), 0), W - 1)


@kernel
def _sample(
    logits,
    uniforms,
    settings,
    ids,
    values,
    scratch,
    lists,
    count,
    columns,
    stride,
    blocks,
    DRAW: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    KEPT: tl.constexpr,
    W: tl.constexpr,
):
    """settings: [4, count] float32: temperature, top_k, top_p, min_p. scratch: [count, 2, blocks] float32. lists: [count, KEPT] int32."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * stride
    most, chosen = _greatest(base, columns, BLOCK)
    if DRAW:
        temperature = tl.load(settings + row)
        # A row that is not finite comes to nothing.
        if (temperature > 0) & (tl.abs(most) < float("inf")):
            uniform = tl.load(uniforms + row)
            least = tl.load(settings + 3 * count + row).to(tl.int32, bitcast=True)
            sums = scratch + row.to(tl.int64) * 2 * blocks
            _sum_blocks(base, sums, sums + blocks, columns, most, temperature, least, ROWS, W, CUT)
            tl.debug_barrier()
            lane = tl.arange(0, BLOCKS)
            drawn = -1
            if CUT:
                k = tl.load(settings + count + row).to(tl.int32)
                share = tl.load(settings + 2 * count + row).to(tl.float64)
                if (k > 0) | (share < 1):
                    # The blocks with the greatest weights, in order: all weights that are not below `full` are in them.
                    tops = tl.load(sums + blocks + lane, lane < blocks, other=0.0)
                    full = fewest_blocks(tops, KEPT)
                    taken = (tops.to(tl.int32, bitcast=True) >= full) & (lane < blocks)
                    held = tl.sum(taken.to(tl.int32), 0)
                    own = lists + row.to(tl.int64) * KEPT
                    tl.store(own + tl.cumsum(taken.to(tl.int32), 0) - 1, lane, taken)
                    tl.debug_barrier()
                    slot = tl.arange(0, KEPT)
                    number = tl.load(own + slot, slot < held, other=0)
                    places = number[:, None] * W + tl.arange(0, W)[None, :]
                    weights = load_weights(base, places, (slot < held)[:, None] & (places < columns), most, temperature)
                    bits = weights.to(tl.int32, bitcast=True)
                    if k > 0:
                        if tl.sum((bits >= full).to(tl.int32)) >= k:
                            least = tl.maximum(least, kth_of(weights, k, full))
                        else:
                            least = tl.maximum(least, row_kth(base, columns, most, temperature, k, ROWS, W))
                    if share < 1:
                        if k == 0:
                            total = tl.sum(tl.load(sums + lane, lane < blocks, other=0.0).to(tl.float64), 0)
                        elif least >= full:
                            total = tl.sum(tl.sum(tl.where(bits >= least, weights, 0.0), 1).to(tl.float64), 0)
                        else:
                            total = row_mass(base, columns, most, temperature, least, ROWS, W)
                        target = share * total
                        low = tl.maximum(least, full)
                        if mass_of(weights, bits, low) >= target:
                            least = reaching(weights, target, low)
                        else:
                            least = row_reaching(base, columns, most, temperature, target, least, ROWS, W)
                    if least >= full:
                        kept = tl.where(bits >= least, weights, 0.0)
                        at, inner = _at(tl.sum(kept, 1), uniform, KEPT)
                        here = tl.sum(tl.where(slot[:, None] == at, kept, 0.0), 0)
                        drawn = tl.sum(tl.where(slot == at, number, 0), 0) * W + _within(here, inner, W)
                    else:
                        tl.debug_barrier()
                        _sum_blocks(base, sums, sums, columns, most, temperature, least, ROWS, W, False)
                        tl.debug_barrier()
            if drawn < 0:
                at, inner = _at(tl.load(sums + lane, lane < blocks, other=0.0), uniform, BLOCKS)
                place = at * W + tl.arange(0, W)
                weights = load_weights(base, place, place < columns, most, temperature)
                here = tl.where(weights.to(tl.int32, bitcast=True) >= least, weights, 0.0)
                drawn = at * W + _within(here, inner, W)
            chosen = tl.minimum(drawn, columns - 1)
    tl.store(ids + row, chosen.to(tl.int64))
    tl.store(values + row, most)


def _fake(logits: Tensor, uniforms: Tensor | None, settings: Tensor | None, cut: bool) -> tuple[Tensor, Tensor]:
    ids = logits.new_empty(logits.shape[0], dtype=torch.int64)
    return ids, torch.empty_like(ids, dtype=torch.float32)


@operator("sample(Tensor logits, Tensor? uniforms, Tensor? settings, bool cut) -> (Tensor, Tensor)", _fake)
def _launch(logits: Tensor, uniforms: Tensor | None, settings: Tensor | None, cut: bool) -> tuple[Tensor, Tensor]:
    rows, columns = logits.shape
    ids, values = _fake(logits, uniforms, settings, cut)
    draws, blocks = uniforms is not None, triton.cdiv(columns, WIDTH)
    scratch = logits.new_empty((rows, 2, blocks) if draws else 0, dtype=torch.float32)
    lists = logits.new_empty((rows, KEPT) if cut else 0, dtype=torch.int32)
    if rows:
        use = dict(choice("sample", logits.device, rows=rows))
        block = min(use.pop("BLOCK"), max(triton.next_power_of_2(columns), WIDTH))
        per = min(use.pop("ROWS"), triton.next_power_of_2(blocks))
        _sample[(rows,)](
            logits,
            uniforms,
            settings,
            ids,
            values,
            scratch,
            lists,
            rows,
            columns,
            logits.stride(0),
            blocks,
            DRAW=draws,
            CUT=cut,
            BLOCK=block,
            ROWS=per,
            BLOCKS=triton.next_power_of_2(blocks),
            KEPT=KEPT,
            W=WIDTH,
            **use,
        )
    return ids, values


def sample(
    logits: Tensor,
    temperature: Column = None,
    uniform: Column = None,
    top_k: Column = None,
    top_p: Column = None,
    min_p: Column = None,
    typical_p: Column = None,
) -> tuple[Tensor, Tensor]:
    """[M, V] -> (ids [M] int64, greatest [M] float32): op `sample`. typical_p, and vocabularies beyond `WIDEST`, are left to torch."""
    if (
        not takes(logits)
        or logits.dim() != 2
        or logits.stride(1) != 1
        or not 0 < logits.shape[1] <= WIDEST
        or (typical_p is not None and bool((typical_p < 1).any()))
    ):
        reference: tuple[Tensor, Tensor] = registered()["sample"].function(
            logits, temperature, uniform, top_k, top_p, min_p, typical_p
        )
        return reference
    greedy = temperature is None or uniform is None or not (temperature > 0).any()
    if greedy or temperature is None or uniform is None:
        found: tuple[Tensor, Tensor] = _launch(logits, None, None, False)
        return found
    rows = len(logits)
    # One copy to the device is enough; from memory that is not pinned the host might wait for it.
    host = torch.empty(6 * rows, dtype=torch.float32, pin_memory=logits.device.type != "cpu")
    packed = host.numpy()  # of which the first 2 are float64
    packed[: 2 * rows].view(np.float64)[:] = uniform
    columns = packed[2 * rows :].reshape(4, rows)
    for own, given, off in zip(columns, (temperature, top_k, top_p, min_p), (0, 0, 1, 0), strict=True):
        own[:] = off if given is None else given
    held = host.to(logits.device, non_blocking=True)
    cut = bool((columns[1] > 0).any() or (columns[2] < 1).any())
    found = _launch(logits, held[: 2 * rows].view(torch.float64), held[2 * rows :], cut)
    return found


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the op where whoever samples has registered it."""
    return {"sample": sample} if phase != "train" and dtype in TYPES and "sample" in registered() else {}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernel is launched."""
    for dtype in TYPES.values():
        signature = {"logits": f"*{dtype}", "ids": "*i64", "values": "*fp32", "scratch": "*fp32", "lists": "*i32"}
        signature |= {"count": "i32", "columns": "i32", "stride": "i32", "blocks": "i32"}
        sizes = {"BLOCK": 4096, "ROWS": 32, "BLOCKS": 2048, "KEPT": KEPT, "W": WIDTH}
        none = {"uniforms": None, "settings": None}
        yield Variant(
            f"sample.greatest[{dtype}]",
            _sample,
            signature,
            sizes | none | {"DRAW": False, "CUT": False},
            {"num_warps": 16},
        )
        signature |= {"uniforms": "*fp64", "settings": "*fp32"}
        for cut in (False, True):
            name = f"sample.{'cut' if cut else 'draw'}[{dtype}]"
            yield Variant(name, _sample, signature, sizes | {"DRAW": True, "CUT": cut}, {"num_warps": 16})
