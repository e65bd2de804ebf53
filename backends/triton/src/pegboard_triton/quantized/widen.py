"""Packed weights of 4 bits in full, by one pass over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard_triton.kernel import kernel
from pegboard_triton.quantized.packed import NF4, Packed, matrix_scale, nf4_values, plain_scale

_BLOCK = 1024
"""Bytes a program."""


@kernel
def widen_all(packed, scales, table, nested, offset, numbers, out, size, SCALED: tl.constexpr, FORMAT: tl.constexpr,
              NESTED: tl.constexpr, BLOCK: tl.constexpr, EACH: tl.constexpr = 0):  # fmt: skip
    """out, flat [size] = the values of packed bytes times the scale of each SCALED of them, each rounded once.

    NESTED: as of `plain_scale`. EACH: scales of one of several matrices, as of `matrix_scale`; 0 for a single one.
    """
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = byte * 2 < size
    tile = tl.load(packed + byte, mask=there, other=0)
    block = tl.where(there, byte * 2 // SCALED, 0)
    if EACH > 0:
        scale = matrix_scale(scales, table, nested, offset, block // EACH, block % EACH, EACH, NESTED)
    else:
        scale = plain_scale(scales, table, nested, offset, block, NESTED)
    if FORMAT == NF4:
        first, second = tl.load(numbers + (tile >> 4)), tl.load(numbers + (tile & 15))
    else:
        first, second = (tile & 15).to(tl.float32) - 8.0, (tile >> 4).to(tl.float32) - 8.0
    values = tl.reshape(tl.join(first * scale, second * scale), [2 * BLOCK]).to(out.dtype.element_ty)
    at = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(out + at, values, mask=at < size)


def values(weight: Packed, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return the weight [N, K]: code times scale in float32, rounded once. out: where to write it, dense."""
    if out is None:
        out = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    size = out.numel()
    if size:
        widen_all[(triton.cdiv(size, 2 * _BLOCK),)](
            weight.codes,
            weight.scales,
            weight.table,
            weight.nested,
            weight.offset,
            nf4_values(weight.codes.device) if weight.form == NF4 else None,
            out,
            size,
            SCALED=weight.scaled,
            FORMAT=weight.form,
            NESTED=weight.coded,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out


def widen_matrices(
    codes: Tensor,
    scales: Sequence[Tensor | None],
    columns: int,
    parts: int,
    scaled: int,
    coded: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return matrices of NF4 in full, [E, rows, columns]. codes: [E, rows, columns / 2] bytes, of `parts` matrices one below the other,
    contiguous. scales: the scales, table, nested, offset and numbers of `widen_all`; scaled, coded: SCALED and NESTED there.
    """
    out = torch.empty(*codes.shape[:2], columns, dtype=dtype, device=codes.device)
    size = out.numel()
    if size:
        widen_all[(triton.cdiv(size, 2 * _BLOCK),)](
            codes,
            *scales,
            out,
            size,
            SCALED=scaled,
            FORMAT=NF4,
            NESTED=coded,
            BLOCK=_BLOCK,
            EACH=codes.shape[1] // parts * columns // scaled,
            num_warps=4,
        )
    return out


def stacked(weights: Sequence[Packed], dtype: torch.dtype) -> Tensor:
    """Return weights of as many columns in full, one below the other: one product serves all."""
    if len(weights) == 1:
        return values(weights[0], dtype)
    rows = [weight.shape[0] for weight in weights]
    out = torch.empty((sum(rows), weights[0].shape[1]), dtype=dtype, device=weights[0].codes.device)
    for weight, part in zip(weights, out.split(rows), strict=True):
        values(weight, dtype, part)
    return out
