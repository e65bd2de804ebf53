"""The arithmetic of an AdamW update, of one tensor and of many."""

from __future__ import annotations

import triton
import triton.language as tl

from pegboard_triton.kernel import kernel

FIELDS = tl.constexpr(10)
"""Of a tensor in the table of `adamw_update_many`: five addresses, size, first program, the bits of rate, seed and correction."""


@triton.jit
def _mixed(x):
    """A hash of 32 bits in which each bit of the input changes half of those of the result (Wellons, 2018)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _rounded(value, noise):
    """Return float32 as bfloat16: 16 random bits are added, and the lower half is cut; what is no number stays none."""
    bits = value.to(tl.uint32, bitcast=True)
    bits = tl.where(value == value, bits + noise, bits | 0x400000)
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _step(
    weight,
    gradient,
    exp_avg,
    exp_avg_sq,
    master,
    factor,
    place,
    inside,
    rate,
    decay,
    beta1,
    beta2,
    eps,
    correction,
    seed_low,
    seed_high,
    MASTER: tl.constexpr,
    FACTOR: tl.constexpr,
    RANDOM: tl.constexpr,
):
    """Update the numbers at `place` of a tensor. rate: the learning rate over the first moment's correction. correction: one over the
    root of the second's. decay: 1 - lr * decay. RANDOM: whether the weight, a bfloat16 without a master, is rounded at random;
    bfloat16 moments always are.
    """
    value = tl.load((master if MASTER else weight) + place, inside, other=0.0).to(tl.float32)
    slope = tl.load(gradient + place, inside, other=0.0).to(tl.float32)
    if FACTOR:
        slope *= tl.load(factor).to(tl.float32)
    first = tl.load(exp_avg + place, inside, other=0.0).to(tl.float32)
    second = tl.load(exp_avg_sq + place, inside, other=0.0).to(tl.float32)
    first += (1.0 - beta1) * (slope - first)
    second = beta2 * second + (1.0 - beta2) * slope * slope
    value = value * decay - rate * first / (tl.sqrt(second) * correction + eps)
    narrow: tl.constexpr = exp_avg.dtype.element_ty == tl.bfloat16
    if RANDOM or narrow:
        low, high = seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True)
        bits = _mixed(_mixed(place.to(tl.uint32) + low) ^ high)
    if MASTER:
        tl.store(master + place, value, inside)
    if RANDOM:
        tl.store(weight + place, _rounded(value, bits & 0xFFFF), inside)
    else:
        tl.store(weight + place, value.to(weight.dtype.element_ty), inside)
    if narrow:
        tl.store(exp_avg + place, _rounded(first, bits >> 16), inside)
        tl.store(exp_avg_sq + place, _rounded(second, _mixed(bits ^ 0x9E3779B9) & 0xFFFF), inside)
    else:
        tl.store(exp_avg + place, first, inside)
        tl.store(exp_avg_sq + place, second, inside)


@kernel(do_not_specialize=["seed_low", "seed_high"])
def adamw_update(
    weight,
    gradient,
    exp_avg,
    exp_avg_sq,
    master,
    factor,
    count,
    rate,
    decay,
    beta1,
    beta2,
    eps,
    correction,
    seed_low,
    seed_high,
    MASTER: tl.constexpr,
    FACTOR: tl.constexpr,
    RANDOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tensor."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _step(
        weight,
        gradient,
        exp_avg,
        exp_avg_sq,
        master,
        factor,
        place,
        place < count,
        rate,
        decay,
        beta1,
        beta2,
        eps,
        correction,
        seed_low,
        seed_high,
        MASTER,
        FACTOR,
        RANDOM,
    )


@kernel
def adamw_update_many(
    table,
    owners,
    factor,
    decay,
    beta1,
    beta2,
    eps,
    WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    MOMENT: tl.constexpr,
    MASTER: tl.constexpr,
    FACTOR: tl.constexpr,
    RANDOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Many small tensors. table: [tensors, FIELDS] int64. owners: [programs] int32, the tensor of each program."""
    row = table + tl.load(owners + tl.program_id(0)) * FIELDS
    place = (tl.program_id(0) - tl.load(row + 6)) * BLOCK + tl.arange(0, BLOCK)
    corrections = tl.load(row + 9)
    seeds = tl.load(row + 8)
    _step(
        tl.load(row).to(tl.pointer_type(WEIGHT)),
        tl.load(row + 1).to(tl.pointer_type(GRADIENT)),
        tl.load(row + 2).to(tl.pointer_type(MOMENT)),
        tl.load(row + 3).to(tl.pointer_type(MOMENT)),
        tl.load(row + 4).to(tl.pointer_type(tl.float32)),
        factor,
        place,
        place < tl.load(row + 5),
        tl.load(row + 7).to(tl.int32).to(tl.float32, bitcast=True),
        decay,
        beta1,
        beta2,
        eps,
        corrections.to(tl.int32).to(tl.float32, bitcast=True),
        seeds.to(tl.int32),
        (seeds >> 32).to(tl.int32),
        MASTER,
        FACTOR,
        RANDOM,
    )
