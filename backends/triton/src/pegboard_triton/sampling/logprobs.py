"""Op `logprob_sums`: what log-probabilities and ranks of ids need of their rows, which are read once."""

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
from pegboard_triton.operators import TYPES, operator, takes
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase


@kernel
def _sums(logits, ids, greatest, totals, ranks, columns, stride, BLOCK: tl.constexpr):
    """Each lane has a greatest and a sum of its own, which are joined at the end, in float64."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * stride
    own = tl.load(base + tl.load(ids + row)).to(tl.float32)
    lane = tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    above = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        value = tl.load(base + start + lane, start + lane < columns, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, value)
        total = total * tl.exp(most - higher) + tl.exp(value - higher)
        most = higher
        above += (value > own).to(tl.int32)
    top = tl.max(most, 0)
    tl.store(greatest + row, top)
    tl.store(totals + row, tl.sum((total * tl.exp(most - top)).to(tl.float64), 0))
    tl.store(ranks + row, (tl.sum(above, 0) + 1).to(tl.int64))


def _fake(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    greatest = logits.new_empty(logits.shape[0], dtype=torch.float32)
    return greatest, torch.empty_like(greatest, dtype=torch.float64), torch.empty_like(greatest, dtype=torch.int64)


@operator("logprob_sums(Tensor logits, Tensor ids) -> (Tensor, Tensor, Tensor)", _fake)
def _launch(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = logits.shape
    made = _fake(logits, ids)
    if rows:
        use = dict(choice("logprob_sums", logits.device))
        block = min(use.pop("BLOCK"), triton.next_power_of_2(columns))
        _sums[(rows,)](logits, ids, *made, columns, logits.stride(0), BLOCK=block, **use)
    return made


def logprob_sums(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """[R, V] x [R] int64 -> (log of the sum of exponentials [R] float64, ranks [R] int64): op `logprob_sums`."""
    if not takes(logits) or logits.dim() != 2 or logits.stride(1) != 1 or not ids.is_contiguous():
        reference: tuple[Tensor, Tensor] = registered()["logprob_sums"].function(logits, ids)
        return reference
    greatest, totals, ranks = _launch(logits, ids)
    return totals.log_().add_(greatest), ranks


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the op where whoever samples has registered it."""
    offered = phase != "train" and dtype in TYPES and "logprob_sums" in registered()
    return {"logprob_sums": logprob_sums} if offered else {}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernel is launched."""
    for dtype in TYPES.values():
        signature = {"logits": f"*{dtype}", "ids": "*i64", "greatest": "*fp32", "totals": "*fp64", "ranks": "*i64"}
        signature |= {"columns": "i32", "stride": "i32"}
        yield Variant(f"logprob_sums[{dtype}]", _sums, signature, {"BLOCK": 4096}, {"num_warps": 16})
