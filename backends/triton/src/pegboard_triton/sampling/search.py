"""Weights of ids, and thresholds of weights, inside a program that has one row of logits.

A weight is exp((logit - greatest) / temperature), a float32 from 0 to 1. The bits of such numbers, taken as integers, are in their order:
bisecting them finds any threshold exactly, in thirty steps at most.
"""

from __future__ import annotations

import triton
import triton.language as tl

WIDTH = 128
"""Ids of a block: of each, the greatest weight and the sum are kept."""

ONE: tl.constexpr = tl.constexpr(0x3F800000)
"""The bits of 1.0, the greatest weight."""


@triton.jit
def weight_of(logit, most, temperature):
    """Return exp((logit - most) / temperature) to the last bits but one; 0 for -inf."""
    exponent = tl.maximum(tl.div_rn(logit - most, temperature), -150.0)
    # A whole power of two, and what is left of it: the hardware's approximation is good near zero only.
    power = tl.floor(exponent * 1.4426950408889634 + 0.5)
    rest = (exponent - power * 0.693359375) - power * -2.12194440e-4
    found = tl.exp2(rest * 1.4426950408889634) * tl.exp2(power)
    return tl.where(logit == float("-inf"), 0.0, found)


@triton.jit
def load_weights(base, ids, inside, most, temperature):
    """Return the weights of ids, 0 outside."""
    logit = tl.load(base + ids, inside, other=float("-inf")).to(tl.float32)
    return weight_of(logit, most, temperature)


@triton.jit
def fewest_blocks(tops, count: tl.constexpr):
    """Return the least bits at or above which at most `count` of the blocks' greatest weights [B] lie: more would not fit."""
    low = 0
    high = ONE + 1
    bits = tops.to(tl.int32, bitcast=True)
    while low < high:
        middle = (low + high) // 2
        if tl.sum((bits >= middle).to(tl.int32), 0) <= count:
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit
def kth_of(weights, k, low):
    """Return the bits of the k-th greatest of weights [N, W], of which at least k are not below `low`."""
    high = ONE
    bits = weights.to(tl.int32, bitcast=True)
    while low < high:
        middle = (low + high + 1) // 2
        if tl.sum((bits >= middle).to(tl.int32)) >= k:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def mass_of(weights, bits, least):
    """Return the sum, float64, of the weights [N, W] whose bits are not below `least`."""
    kept = tl.where(bits >= least, weights, 0.0)
    return tl.sum(kept.to(tl.float64))


@triton.jit
def reaching(weights, target, low):
    """Return the greatest bits such that weights [N, W] not below them sum up to `target`, as those not below `low` do."""
    high = ONE
    bits = weights.to(tl.int32, bitcast=True)
    while low < high:
        middle = (low + high + 1) // 2
        if mass_of(weights, bits, middle) >= target:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def row_count(base, columns, most, temperature, least, ROWS: tl.constexpr, W: tl.constexpr):
    """Return how many weights of a whole row are not below `least`."""
    found = 0
    for start in range(0, columns, ROWS * W):
        ids = start + tl.arange(0, ROWS)[:, None] * W + tl.arange(0, W)[None, :]
        bits = load_weights(base, ids, ids < columns, most, temperature).to(tl.int32, bitcast=True)
        found += tl.sum((bits >= least).to(tl.int32) * (ids < columns).to(tl.int32))
    return found


@triton.jit
def row_mass(base, columns, most, temperature, least, ROWS: tl.constexpr, W: tl.constexpr):
    """Return the sum, float64, of the weights of a whole row that are not below `least`."""
    found = tl.zeros((), tl.float64)
    for start in range(0, columns, ROWS * W):
        ids = start + tl.arange(0, ROWS)[:, None] * W + tl.arange(0, W)[None, :]
        weights = load_weights(base, ids, ids < columns, most, temperature)
        found += mass_of(weights, weights.to(tl.int32, bitcast=True), least)
    return found


@triton.jit
def row_kth(base, columns, most, temperature, k, ROWS: tl.constexpr, W: tl.constexpr):
    """Return the bits of the k-th greatest weight of a whole row, which is read for each step."""
    low = 0
    high = ONE
    while low < high:
        middle = (low + high + 1) // 2
        if row_count(base, columns, most, temperature, middle, ROWS, W) >= k:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def row_reaching(base, columns, most, temperature, target, low, ROWS: tl.constexpr, W: tl.constexpr):
    """Return the greatest bits, from `low` on, such that weights not below them sum up to `target`; a whole row is read for each step."""
    high = ONE
    while low < high:
        middle = (low + high + 1) // 2
        if row_mass(base, columns, most, temperature, middle, ROWS, W) >= target:
            low = middle
        else:
            high = middle - 1
    return low
