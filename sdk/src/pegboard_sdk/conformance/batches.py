"""Random ragged batches over a paged cache whose unused places are poisoned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pegboard import reference
from pegboard.reference.attention import token
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_sdk.toys.attention import write
from pegboard_sdk.toys.model import cache_of


def random_qkv(
    spec: AttentionSpec, tokens: int, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v of `tokens` rows, drawn on the host so that every device gets the same."""
    generator = torch.Generator().manual_seed(seed)
    heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    q, k, v = (torch.randn(tokens, count, spec.head_dim, generator=generator).to(device, dtype) for count in heads)
    return q, k, v


class PagedBatch:
    """Sequences with old[i] tokens in the cache and new[i] to come, their pages scattered and in no order.

    Every place of the cache that holds no token of these sequences is NaN, in free pages as behind the last token of a
    page: one such value that is read, even with weight zero, shows in the output. inputs: the batch. cache: the cache
    before the step. q, k, v: the new tokens'.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        layout: KVLayout,
        old: Sequence[int],
        new: Sequence[int],
        device: torch.device,
        *,
        seed: int = 0,
        pad_to: int | None = None,
        pad_pages: int | None = None,
        pad_queries: int = 1,
        pages: int = 40,
    ) -> None:
        self.spec, self.layout = spec, layout
        dtype = getattr(torch, layout.dtype)
        self.cache = cache_of(layout, pages, device, fill=math.nan)
        free = torch.randperm(pages - 1, generator=torch.Generator().manual_seed(seed)).add(1).tolist()
        table: list[list[int]] = []
        slots: list[int] = []
        for o, n in zip(old, new, strict=True):
            row = [free.pop() for _ in range(-(-(o + n) // layout.page_size))]
            _, k, v = random_qkv(spec, o, dtype, device, seed + 100 + len(table))
            for t in range(o):
                token(self.cache.k[spec.layer], layout, row, t).copy_(k[t])
                token(self.cache.v[spec.layer], layout, row, t).copy_(v[t])
            table.append(row)
            slots += [row[t // layout.page_size] * layout.page_size + t % layout.page_size for t in range(o, o + n)]
        decodes = next((i for i, n in enumerate(new) if n != 1), len(new))
        lens = [o + n for o, n in zip(old, new, strict=True)]
        slot_mapping = torch.tensor(slots, dtype=torch.int64, device=device)
        self.inputs = AttentionInputs(
            list(new), lens, table, slot_mapping, decodes, pad_to, pad_pages, pad_queries=pad_queries
        )
        self.q, self.k, self.v = random_qkv(spec, sum(new), dtype, device, seed + 1)

    def expected(self) -> Tensor:
        """Return what the step gives, [T, num_heads, D] float64. Call it before the cache is written."""
        return reference.paged_attention(self.q, self.k, self.v, self.spec, self.inputs, self.cache)

    def expected_cache(self) -> KVCache:
        """Return a copy of the cache with the new tokens in it. Call it before the cache is written."""
        copy = KVCache(self.layout, [x.clone() for x in self.cache.k], [x.clone() for x in self.cache.v])
        write(self.k, self.v, self.spec.layer, self.inputs, copy)
        return copy

    def padded(self, fill: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v with the rows of a static plan that belong to no sequence, which hold `fill`."""
        rows = (self.inputs.pad_to or 0) - len(self.q)
        q, k, v = (torch.cat([x, x.new_full((rows, *x.shape[1:]), fill)]) for x in (self.q, self.k, self.v))
        return q, k, v
