"""Sequences over a paged cache, planned on the host for one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_sdpa.capped import capped_attention
from pegboard_sdpa.masks import causal_mask
from pegboard_sdpa.rows import Rows


@dataclass(slots=True)
class _Sequence:
    """One sequence of the step.

    start: its first row. queries: its new tokens. length: all its tokens.
    first_slot: where its tokens lie when its pages follow one another, so that they are read without a copy; else `pages`.
    apart: somebody else attends for it.
    """

    start: int
    queries: int
    length: int
    first_slot: int | None
    pages: Tensor | None
    apart: bool = False


class PagedPlan:
    """Reads each sequence's keys and values from its pages, after the new ones are written."""

    def __init__(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout) -> None:
        self._device = device
        self._layout = layout
        self.update_(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch. Not for captured graphs: shapes change."""
        assert inputs.block_table is not None and inputs.slot_mapping is not None
        self._slots = inputs.slot_mapping.to(self._device, non_blocking=True)
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._sequences: list[_Sequence] = []
        size, start, apart = self._layout.page_size, 0, set(inputs.apart)
        for index, (queries, length) in enumerate(zip(inputs.query_lens, inputs.seq_lens, strict=True)):
            queries, length, used = int(queries), int(length), inputs.pages(index, size)
            first_slot = used[0] * size if _consecutive(used) else None
            table = None if first_slot is not None else torch.tensor(used, device=self._device)
            self._sequences.append(_Sequence(start, queries, length, first_slot, table, index in apart))
            start += queries

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, cache: KVCache | None) -> Tensor:
        """[T, heads, D] -> [T, heads, D]."""
        assert cache is not None
        keys, values = Rows.of(cache, spec.layer)
        keys.write(self._slots, k)
        values.write(self._slots, v)
        parts = []
        for sequence in self._sequences:
            rows = q[sequence.start : sequence.start + sequence.queries]
            if sequence.apart:
                parts.append(torch.empty_like(rows))
                continue
            parts.append(self._one(rows, self._tokens(keys, sequence, q), self._tokens(values, sequence, q), spec))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _tokens(self, rows: Rows, sequence: _Sequence, q: Tensor) -> Tensor:
        """Return the sequence's keys or values, [length, kv_heads, D] in q's dtype."""
        if sequence.first_slot is not None:
            return rows.between(sequence.first_slot, sequence.length, q.dtype)
        assert sequence.pages is not None
        return rows.of_pages(sequence.pages, self._layout.page_size, sequence.length, q.dtype)

    def _one(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        if spec.softcap is not None:
            q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            return capped_attention(q, k, v, spec).squeeze(0).transpose(0, 1)
        if q.shape[0] == 1:
            return decode(q, k, v, spec)
        queries, length = q.shape[0], k.shape[0]
        mask = None
        if queries != length or (spec.window is not None and spec.window < length):
            key = (queries, length, spec.window)
            if key not in self._masks:
                self._masks[key] = causal_mask(queries, length, spec.window, self._device)
            mask = self._masks[key]
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.squeeze(0).transpose(0, 1)


def decode(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """One new token: the heads that share keys become rows of one small product. q [1, heads, D], k and v [L, kv_heads, D]."""
    if spec.window is not None and spec.window < k.shape[0]:
        k, v = k[-spec.window :], v[-spec.window :]
    grouped = q.view(1, spec.num_kv_heads, -1, spec.head_dim)
    out = F.scaled_dot_product_attention(
        grouped, k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0), scale=spec.scale
    )
    return out.reshape(1, spec.num_heads, spec.head_dim)


def _consecutive(pages: Sequence[int]) -> bool:
    first = pages[0]
    return pages[-1] - first == len(pages) - 1 and all(page == first + i for i, page in enumerate(pages))
