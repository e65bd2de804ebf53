"""Keys or values of one layer's cache as rows by slot, whatever they are stored as."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pegboard.types import KVCache


@dataclass(frozen=True, slots=True)
class Rows:
    """values: [slots, kv_heads, D]. scales: [slots, kv_heads] float32 by which codes (int8, float8_e4m3fn) are multiplied; None for other
    dtypes.
    """

    values: Tensor
    scales: Tensor | None

    @classmethod
    def of(cls, cache: KVCache, layer: int) -> tuple[Rows, Rows]:
        """Return keys and values of a layer; they share the cache's memory."""
        scales = [None if s is None else s[layer].flatten(0, 1) for s in (cache.k_scale, cache.v_scale)]
        k, v = cache.k[layer].flatten(0, 1), cache.v[layer].flatten(0, 1)
        return cls(k, scales[0]), cls(v, scales[1])

    def write(self, slots: Tensor, new: Tensor) -> None:
        """Put rows [T, kv_heads, D] at slots [T]."""
        if self.scales is None:
            self.values.index_copy_(0, slots, new.to(self.values.dtype))
            return
        values, scales = quantize(new, self.values.dtype)
        _bytes(self.values).index_copy_(0, slots, _bytes(values))
        self.scales.index_copy_(0, slots, scales)

    def between(self, first: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return [count, kv_heads, D] from slot `first` on."""
        part = slice(first, first + count)
        return _wide(self.values[part], None if self.scales is None else self.scales[part], dtype)

    def at(self, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """Return [..., kv_heads, D] at slots [...]."""
        return _wide(
            _bytes(self.values)[slots].view(self.values.dtype),
            None if self.scales is None else self.scales[slots],
            dtype,
        )

    def of_pages(self, pages: Tensor, page_size: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return [count, kv_heads, D], the first rows of `pages` in turn."""
        parts = [
            None if x is None else x.unflatten(0, (-1, page_size)).index_select(0, pages).flatten(0, 1)[:count]
            for x in (_bytes(self.values), self.scales)
        ]
        assert parts[0] is not None
        return _wide(parts[0].view(self.values.dtype), parts[1], dtype)


def quantize(rows: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """[..., D] -> codes [..., D] and float32 scales [...]: the greatest magnitude of a row becomes 127, or 448 in float8_e4m3fn; ties
    round to even.

    What is not finite makes its row's scale NaN, so that whoever reads it learns of it.
    """
    wide = rows.float()
    scales = wide.abs().amax(-1) / (127 if dtype == torch.int8 else torch.finfo(dtype).max)
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    steps = torch.where(scales[..., None] > 0, wide / scales[..., None], 0.0)
    return (steps.round() if dtype == torch.int8 else steps).to(dtype), scales


def _bytes(values: Tensor) -> Tensor:
    """Return 8-bit floats as bytes, which torch can index everywhere; other values as they are."""
    return values.view(torch.uint8) if values.dtype == torch.float8_e4m3fn else values


def _wide(values: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if scales is None else (values.float() * scales[..., None]).to(dtype)
