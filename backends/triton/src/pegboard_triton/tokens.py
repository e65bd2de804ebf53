"""Ids at both ends of a decode step: those that the host does not know yet, and those that it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton.catalogue import Variant
from pegboard_triton.kernel import kernel
from pegboard_triton.operators import INTERPRETED

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

_BLOCK = 128


@kernel
def fill_in(ids, last, slots, out, count, BLOCK: tl.constexpr):
    """out [N] = ids [N], and last[slots] where they are below 0."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = row < count
    known = tl.load(ids + row, mask=there, other=0)
    slot = tl.load(slots + row, mask=there, other=0)
    before = tl.load(last + slot, mask=there & (known < 0), other=0)
    tl.store(out + row, tl.where(known < 0, before, known), mask=there)


@kernel
def tell(ids, most, last, slots, out, count, BLOCK: tl.constexpr):
    """last[slots] = ids [N]; out [N] = ids, and -1 - id where `most` is infinite or not a number."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = row < count
    chosen = tl.load(ids + row, mask=there, other=0)
    value = tl.load(most + row, mask=there, other=0.0).to(tl.float32)
    tl.store(last + tl.load(slots + row, mask=there, other=0), chosen, mask=there)
    # What is not a number is smaller than nothing.
    finite = tl.abs(value) < float("inf")
    tl.store(out + row, tl.where(finite, chosen, -1 - chosen), mask=there)


def _takes(*tensors: Tensor) -> bool:
    here = tensors[0].device.type
    return (here != "cpu" or INTERPRETED) and all(x.is_contiguous() for x in tensors)


def known_ids(ids: Tensor, last: Tensor, slots: Tensor) -> Tensor:
    """Op `known_ids` of the engine."""
    if not _takes(ids, last, slots):
        return registered()["known_ids"].function(ids, last, slots)
    out = torch.empty_like(ids)
    if count := len(ids):
        fill_in[(triton.cdiv(count, _BLOCK),)](ids, last, slots, out, count, BLOCK=_BLOCK, num_warps=4)
    return out


def keep_last(ids: Tensor, most: Tensor, last: Tensor, slots: Tensor) -> Tensor:
    """Op `keep_last` of the engine."""
    if not _takes(ids, most, last, slots) or most.dtype == torch.float64:
        return registered()["keep_last"].function(ids, most, last, slots)
    out = torch.empty_like(ids)
    if count := len(ids):
        tell[(triton.cdiv(count, _BLOCK),)](ids, most, last, slots, out, count, BLOCK=_BLOCK, num_warps=4)
    return out


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the ops where whoever runs decode steps has registered them."""
    if phase == "train":
        return {}
    return {name: function for name, function in _OPS.items() if name in registered()}


_OPS: dict[str, Callable[..., Any]] = {"known_ids": known_ids, "keep_last": keep_last}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernels are launched."""
    ids = dict.fromkeys(("ids", "last", "slots", "out"), "*i64") | {"count": "i32"}
    options = {"num_warps": 4}
    yield Variant("known_ids", fill_in, ids, {"BLOCK": _BLOCK}, options)
    yield Variant("keep_last", tell, ids | {"most": "*fp32"}, {"BLOCK": _BLOCK}, options)
