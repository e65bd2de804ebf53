"""Rows of a vocabulary's width, read in blocks: greatest values and sums, without sorting.

Reductions over short blocks are as fast as torch reads memory, and their order is a row's own, however many rows there are; the few
blocks that can hold what is looked for are read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_MIDDLE, _NARROW = 128, 64
_HOST = "cpu"


def on_host(values: Tensor) -> bool:
    """Whether numpy can read a tensor where it is, and looking at a value waits for nothing."""
    return values.device.type == _HOST


def greatest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids [R] int64 and values [R] of the greatest of each row [R, V] float32, the first of equals. A row with a NaN has a NaN."""
    if on_host(values):
        # numpy takes a tenth of torch's time.
        ids = torch.from_numpy(values.detach().numpy().argmax(1))
    else:
        ids = values.argmax(1)
    return ids, values.gather(1, ids[:, None]).squeeze(1)


def mass(weights: Tensor) -> Tensor:
    """Return [R] float64, the sum of each row of weights [R, V] float32, which are not negative."""
    return _by_block(weights, torch.sum, _MIDDLE).sum(1, dtype=torch.float64)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return ids [R] int64: the inverse of the cumulative distribution over ids in their order.

    weights: [R, V] float32, not negative. uniform: [R] float64 in [0, 1).
    """
    sums = _by_block(weights, torch.sum, _MIDDLE).cumsum(1, dtype=torch.float64)
    # The greatest uniform number is the float before 1, so that the product is less than the total.
    target = uniform[:, None] * sums[:, -1:]
    block = (sums <= target).sum(1, keepdim=True)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, block)
    ids = _ids_of(block, _MIDDLE)
    inner = _take(weights, ids, 0).cumsum(1, dtype=torch.float64)
    # These sums are not rounded as those of the blocks: stay below, at the last id that has any weight.
    target = torch.minimum(target - before, inner[:, -1:] * (1 - 2**-53))
    return ids.gather(1, (inner <= target).sum(1, keepdim=True)).squeeze(1)


def top_values(values: Tensor, count: int) -> Tensor:
    """Return the greatest `count` of each row, [R, count], descending; a row must have that many."""
    if count * 2 >= -(-values.shape[1] // _NARROW):
        return values.topk(count).values
    # None of the greatest is outside the `count` blocks with the greatest maxima, ties aside, which have the same values.
    best = _by_block(values, torch.amax, _NARROW).topk(count).indices
    return _take(values, _ids_of(best, _NARROW), -math.inf).topk(count).values


def top_ids(values: Tensor, count: int) -> Tensor:
    """Return the ids of the greatest `count` of each row, [R, count] int64, by value and, of equal ones, by id."""
    if count * 2 >= -(-values.shape[1] // _NARROW):
        return _keys(values).topk(count).indices
    best = _keys(_by_block(values, torch.amax, _NARROW)).topk(count).indices.sort().values
    ids = _ids_of(best, _NARROW)
    return ids.gather(1, _keys(_take(values, ids, -math.inf)).topk(count).indices)


def _keys(values: Tensor) -> Tensor:
    """Return int64 that order a row by value, then by place: no two are equal."""
    bits = (values + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + torch.arange(values.shape[1] - 1, -1, -1, device=values.device)


def _by_block(values: Tensor, reduce: Callable[..., Tensor], size: int) -> Tensor:
    """Return [R, B] of `reduce` over blocks of `size` ids; the last may be shorter."""
    whole = values.shape[1] // size * size
    parts = []
    if whole:
        parts.append(reduce(values[:, :whole].unflatten(1, (-1, size)), -1))
    if whole < values.shape[1]:
        parts.append(reduce(values[:, whole:], -1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _ids_of(blocks: Tensor, size: int) -> Tensor:
    """Return [R, N * size] ids of blocks [R, N]; those of the last may be past the end."""
    ids = blocks[:, :, None] * size + torch.arange(size, device=blocks.device)
    return ids.flatten(1)


def _take(values: Tensor, ids: Tensor, fill: float) -> Tensor:
    """Return the values at ids, `fill` past the end."""
    vocab = values.shape[1]
    if vocab % _MIDDLE == 0:
        return values.gather(1, ids)
    return values.gather(1, ids.clamp(max=vocab - 1)).masked_fill_(ids >= vocab, fill)
