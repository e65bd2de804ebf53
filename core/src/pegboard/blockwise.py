"""Numbers as codes into a small table, with one scale for each block of them (Dettmers et al., arXiv:2110.02861)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE = 1 << 22
"""Values that are worked on at once: a float32 copy of a whole embedding is never made."""


class Table:
    """Up to 256 values between -1 and 1, ascending, that codes point at.

    Block i of a flattened tensor holds its values i * block … (i + 1) * block - 1; the last one may be shorter. Its scale is its largest
    magnitude, and a code of it is read back as values[code] * scale.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.values = torch.tensor(values, dtype=torch.float32)
        middles = (self.values[1:] + self.values[:-1]) / 2
        # The upper half of a float32 leaves two codes at most, and one comparison then decides: eight times as fast as a search.
        bits = torch.arange(1 << 16, dtype=torch.int32) << 16
        ends = torch.stack([bits.view(torch.float32), (bits | 0xFFFF).view(torch.float32)])
        low, high = torch.bucketize(ends.amin(0), middles), torch.bucketize(ends.amax(0), middles)
        if ((high - low > 1) & (ends[0].abs() <= 1)).any():
            raise ValueError("the values of the table lie too close for 16 bits to tell them apart")
        self._first = low.clamp_(max=len(values) - 1).to(torch.int32)
        self._middles = torch.cat([middles, torch.tensor([torch.inf])])

    @torch.no_grad()
    def quantise(self, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Return (codes uint8, one a value, flat; scales float32, one a block): the value of the table nearest to each value / scale.

        values: of any shape and floating dtype. A block of zeros has the scale 0. One that is not finite makes its scale so.
        """
        flat = values.reshape(-1)
        first, middles = self._first.to(flat.device), self._middles.to(flat.device)
        codes = torch.empty(flat.numel(), dtype=torch.uint8, device=flat.device)
        scales = torch.empty(block_count(flat.numel(), block), dtype=torch.float32, device=flat.device)
        for start, part in _pieces(flat, block):
            blocks = _blocks(part.float(), block)
            largest = blocks.abs().amax(1)
            scales[start // block : start // block + len(largest)] = largest
            scaled = (blocks / torch.where(largest == 0, 1.0, largest)[:, None]).view(-1)[: part.numel()]
            found = first.index_select(0, (scaled.view(torch.int32) >> 16).bitwise_and_(0xFFFF))
            found += scaled > middles.index_select(0, found)
            codes[start : start + part.numel()] = found.to(torch.uint8)
        return codes, scales

    @torch.no_grad()
    def dequantise(self, codes: Tensor, scales: Tensor, block: int) -> Tensor:
        """Return what was quantised, flat, float32. codes: flat uint8. scales: float32, one a block."""
        values = self.values.to(codes.device)
        out = torch.empty(codes.numel(), dtype=torch.float32, device=codes.device)
        for start, part in _pieces(codes, block):
            blocks = _blocks(values.index_select(0, part.int()), block)
            blocks = blocks * scales[start // block : start // block + len(blocks), None]
            out[start : start + part.numel()] = blocks.view(-1)[: part.numel()]
        return out


@cache
def dynamic_table(*, signed: bool) -> Table:
    """Return the 256 values of the dynamic data type (arXiv:1511.04561, section 2.1), from -1 or from 0 to 1.

    Seven decades; each smaller one has half as many steps, which are the middles of equal parts of 0.1 … 1. Zero and one are exact.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        ends = torch.linspace(0.1, 1, 2 ** (exponent if signed else exponent + 1) + 1)
        middles = (10.0 ** (exponent - 6) * ((ends[:-1] + ends[1:]) / 2)).tolist()
        values += middles + [-value for value in middles] if signed else middles
    return Table(sorted(values))


@cache
def normal_table() -> Table:
    """Return the 16 values of the 4-bit normal float data type (arXiv:2305.14314, appendix E): quantiles of a normal distribution, zero
    exact, scaled to -1 … 1. The digits are those that the type is defined by in practice; computing the quantiles again gives others in
    the last places.
    """
    below = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    below += [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
    above = [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    above += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
    return Table(below + above)


def block_count(count: int, block: int) -> int:
    """Return how many blocks `count` values make."""
    return -(-count // block)


def _pieces(flat: Tensor, block: int) -> list[tuple[int, Tensor]]:
    """Return whole blocks at a time, with where each piece starts."""
    size = max(_PIECE // block, 1) * block
    return [(start, flat[start : start + size]) for start in range(0, flat.numel(), size)]


def _blocks(flat: Tensor, block: int) -> Tensor:
    """Return [blocks, block], the last one filled up with zeros."""
    return F.pad(flat, (0, -flat.numel() % block)).view(-1, block)
