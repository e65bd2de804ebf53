"""Op `moe_route` as one kernel: softmax over the experts, and the k likeliest of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.nn import grouped as reference
from pegboard_triton.kernel import kernel, rehearsing
from pegboard_triton.operators import differentiates, operator, takes

_MOST_EXPERTS, _MOST_CHOSEN = 1024, 32
_FEW, _TOGETHER = 256, 4
"""Tokens up to which each has a program, of one warp; of more, so many share one, with a warp each."""


@kernel
def choose_experts(
    logits,
    ids,
    weights,
    tokens,
    stride,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    WIDTH: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """ids, weights [T, TOP_K]: the greatest of softmax(logits) [T, EXPERTS], the likeliest first; of equal ones the lower id.

    A row with what is not a number gets ids of experts, and weights that are none either.
    """
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert = tl.arange(0, WIDTH)
    real = (row < tokens)[:, None] & (expert < EXPERTS)[None, :]
    x = tl.load(logits + row.to(tl.int64)[:, None] * stride + expert[None, :], mask=real, other=0.0).to(tl.float32)
    x = tl.where((expert < EXPERTS)[None, :], x, float("-inf"))
    powers = tl.exp(x - tl.max(x, 1)[:, None])
    probs = powers / tl.sum(powers, 1)[:, None]
    # Nothing compares with what is not a number; places behind the last expert come after all that were chosen.
    left = tl.where(probs == probs, probs, 0.0)
    left = tl.where((expert < EXPERTS)[None, :], left, -2.0)
    place = tl.arange(0, CHOSEN)
    found = tl.zeros([BLOCK_T, CHOSEN], tl.int32)
    values = tl.zeros([BLOCK_T, CHOSEN], tl.float32)
    for k in range(TOP_K):
        best = tl.argmax(left, 1, tie_break_left=True)
        is_best = expert[None, :] == best[:, None]
        value = tl.sum(tl.where(is_best, probs, 0.0), 1)
        left = tl.where(is_best, -1.0, left)
        found = tl.where(place[None, :] == k, best[:, None], found)
        values = tl.where(place[None, :] == k, value[:, None], values)
    if RENORMALISE:
        values = values / tl.sum(values, 1)[:, None]
    at = row.to(tl.int64)[:, None] * TOP_K + place[None, :]
    there = (row < tokens)[:, None] & (place < TOP_K)[None, :]
    tl.store(ids + at, found.to(tl.int64), mask=there)
    tl.store(weights + at, values, mask=there)


def _outputs(logits: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    shape = (len(logits), k)
    # What reads the ids of a rehearsal may be torch, which stops the device at one that is no expert.
    ids = (logits.new_zeros if rehearsing() else logits.new_empty)(shape, dtype=torch.int64)
    return ids, logits.new_empty(shape, dtype=torch.float32)


@operator("moe_route(Tensor logits, int k, bool renormalise) -> (Tensor, Tensor)", _outputs)
def _moe_route(logits: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    ids, weights = _outputs(logits, k, renormalise)
    tokens, experts = logits.shape
    width = triton.next_power_of_2(experts)
    block = 1 if tokens <= _FEW else _TOGETHER
    if tokens:
        choose_experts[(triton.cdiv(tokens, block),)](
            logits,
            ids,
            weights,
            tokens,
            logits.stride(0),
            EXPERTS=experts,
            TOP_K=k,
            RENORMALISE=renormalise,
            BLOCK_T=block,
            WIDTH=width,
            CHOSEN=triton.next_power_of_2(k),
            num_warps=block,
        )
    return ids, weights


def moe_route(logits: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """[T, E] -> ids [T, k] int64 and weights [T, k] float32: op `moe_route`. Not where a gradient is asked for: there torch computes."""
    whole = takes(logits) and logits.dim() == 2 and logits.stride(-1) == 1 and not differentiates(logits)
    if not whole or logits.shape[1] > _MOST_EXPERTS or not 0 < k <= min(logits.shape[1], _MOST_CHOSEN):
        return reference.moe_route(logits, k, renormalise)
    found: tuple[Tensor, Tensor] = _moe_route(logits, k, renormalise)
    return found
