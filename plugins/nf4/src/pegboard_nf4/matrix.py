"""A matrix as 4-bit codes: how values become codes, how they are packed, and how rows of it are read back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd

import torch
from torch import Tensor

from pegboard.blockwise import block_count, dynamic_table, normal_table

BLOCK, NESTED_BLOCK = 64, 256
"""Values that share a scale, and scales that share one: QLoRA's, and those of bitsandbytes."""

nf4_table = normal_table


@dataclass(frozen=True, slots=True, eq=False)
class Nf4Matrix:
    """A matrix of `shape` [N, K]: value i of its rows laid end to end is table[code i] * scale of block i // 64.

    packed: uint8 [ceil(N K / 2)], the code of an even i in the upper half of a byte. scales: float32 [blocks]; where `nested` is given
    uint8 codes of the dynamic data type, of which 256 share a scale. nested: float32 [ceil(blocks / 256)]. offset: float32 [], the mean
    that was taken off the scales before.
    """

    shape: tuple[int, int]
    packed: Tensor
    scales: Tensor
    nested: Tensor | None = None
    offset: Tensor | None = None

    @property
    def unit(self) -> int:
        """How many rows must stay together, so that no block is cut."""
        return BLOCK // gcd(BLOCK, self.shape[1])

    def plain_scales(self) -> Tensor:
        """Return the scale of every block, float32."""
        if self.nested is None or self.offset is None:
            return self.scales
        if self.scales.is_meta:
            return torch.empty(self.scales.shape, device="meta")
        return dynamic_table(signed=True).dequantise(self.scales, self.nested, NESTED_BLOCK).add_(self.offset)

    def rows(self, start: int, stop: int, dtype: torch.dtype, scales: Tensor | None = None) -> Tensor:
        """Return rows start … stop - 1 dequantised, [stop - start, K]: products in float32, rounded once to `dtype`.

        start is a multiple of `unit`, and so is stop unless it is the last row. scales: `plain_scales()`, where it is at hand.
        """
        columns = self.shape[1]
        first, last = start * columns, stop * columns
        codes = self.packed[first // 2 : block_count(last, 2)]
        values = _pairs(codes.device).index_select(0, codes.int()).view(torch.float32)
        scales = (self.plain_scales() if scales is None else scales)[first // BLOCK : block_count(last, BLOCK)]
        values = values[: last - first]
        whole = (last - first) // BLOCK
        values[: whole * BLOCK].view(-1, BLOCK).mul_(scales[:whole, None])
        values[whole * BLOCK :].mul_(scales[whole:])
        return values.view(stop - start, columns).to(dtype)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """Return the whole matrix [N, K]."""
        return self.rows(0, self.shape[0], dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Nf4Stack(Nf4Matrix):
    """Matrices of one width, one below the other, whose codes are one storage. members: they, of whole blocks each; `scales` is unused."""

    members: tuple[Nf4Matrix, ...] = ()

    def plain_scales(self) -> Tensor:
        """Return the scale of every block, float32."""
        return torch.cat([member.plain_scales() for member in self.members])


@cache
def _pairs(device: torch.device) -> Tensor:
    """Return for every byte the two float32 that its halves stand for, upper half first, as one float64 of the same 64 bits."""
    byte = torch.arange(256)
    values = nf4_table().values
    return torch.stack([values[byte >> 4], values[byte & 15]], 1).view(torch.float64).view(-1).to(device)


def empty(shape: tuple[int, int], *, double: bool) -> Nf4Matrix:
    """Return a matrix without storage. double: whether its scales are quantised, too."""
    blocks = block_count(shape[0] * shape[1], BLOCK)
    packed = torch.empty(block_count(shape[0] * shape[1], 2), dtype=torch.uint8, device="meta")
    if not double:
        return Nf4Matrix(shape, packed, torch.empty(blocks, device="meta"))
    codes = torch.empty(blocks, dtype=torch.uint8, device="meta")
    nested = torch.empty(block_count(blocks, NESTED_BLOCK), device="meta")
    return Nf4Matrix(shape, packed, codes, nested, torch.empty((), device="meta"))


@torch.no_grad()
def quantise(weight: Tensor, *, double: bool) -> Nf4Matrix:
    """Return a matrix [N, K] of any floating dtype in 4 bits. What is not finite makes scales that are not."""
    codes, scales = nf4_table().quantise(weight, BLOCK)
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_full((1,), 7)])  # the code of zero, which nobody reads
    packed = codes[0::2].bitwise_left_shift(4).bitwise_or_(codes[1::2])  # of its own: no view of twice as many codes
    shape = (weight.shape[0], weight.shape[1])
    if not double:
        return Nf4Matrix(shape, packed, scales)
    offset = scales.mean()
    nested_codes, nested = dynamic_table(signed=True).quantise(scales - offset, NESTED_BLOCK)
    return Nf4Matrix(shape, packed, nested_codes, nested, offset)
