"""Whole sequences without a cache: training and scoring."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.types import AttentionInputs, AttentionSpec, KVCache
from pegboard_sdpa.capped import capped_attention
from pegboard_sdpa.masks import causal_mask
from pegboard_sdpa.varlen import serves, varlen_attention

_SMALLEST_BUCKET = 16


@dataclass(slots=True)
class _Bucket:
    """Sequences of similar length, padded at the end. rows: [count * length] rows of the flat batch, any row where padded."""

    count: int
    length: int
    rows: Tensor


class UnpagedPlan:
    """Sequences of one length in one piece, others by torch's variable-length attention where the device has it, or else in buckets of a
    padded length each.

    Padding stands behind a sequence, so causal attention never looks at it and needs no mask for it.
    """

    def __init__(self, inputs: AttentionInputs, device: torch.device) -> None:
        self._device = device
        self._lay_out(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch. Not for captured graphs: shapes change."""
        self._lay_out(inputs)

    def _lay_out(self, inputs: AttentionInputs) -> None:
        self._lens = [int(length) for length in inputs.query_lens]
        self._uniform = self._lens[0] if self._lens and len(set(self._lens)) == 1 else None
        self._longest = max(self._lens, default=0)
        self._buckets: list[_Bucket] = []
        self._inverse: Tensor | None = None
        self._cu_seqlens: Tensor | None = None
        self._masks: dict[tuple[int, int], Tensor] = {}

    def _make_buckets(self) -> None:
        lens = self._lens
        starts = [0]
        for length in lens:
            starts.append(starts[-1] + length)
        grouped: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lens):
            grouped[max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length())].append(index)
        inverse = torch.empty(starts[-1], dtype=torch.int64)
        offset = 0
        for members in grouped.values():
            longest = max(lens[i] for i in members)
            first = torch.tensor([starts[i] for i in members])[:, None]
            sizes = torch.tensor([lens[i] for i in members])[:, None]
            steps = torch.arange(longest)[None, :]
            real = steps < sizes
            rows = torch.where(real, first + steps, first)
            inverse[rows[real]] = (offset + torch.arange(rows.numel()).view_as(rows))[real]
            offset += rows.numel()
            self._buckets.append(_Bucket(len(members), longest, rows.flatten().to(self._device)))
        self._inverse = inverse.to(self._device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, cache: KVCache | None) -> Tensor:
        """[T, heads, D] -> [T, heads, D]."""
        if not self._lens:
            return torch.empty_like(q)
        # A window takes a mask elsewhere, and every product that it hides.
        windowed = spec.window is not None and spec.window < self._longest
        if (self._uniform is None or windowed) and serves(q, spec):
            return varlen_attention(q, k, v, spec, self._starts(), self._longest)
        if self._uniform is not None:
            return self._padded(q, k, v, q.shape[0] // self._uniform, self._uniform, spec)
        if self._inverse is None:
            self._make_buckets()
        assert self._inverse is not None
        parts = [
            self._padded(
                q.index_select(0, bucket.rows),
                k.index_select(0, bucket.rows),
                v.index_select(0, bucket.rows),
                bucket.count,
                bucket.length,
                spec,
            )
            for bucket in self._buckets
        ]
        return torch.cat(parts).index_select(0, self._inverse)

    def _starts(self) -> Tensor:
        """Return the first row of each sequence and the end, [N + 1] int32."""
        if self._cu_seqlens is None:
            self._cu_seqlens = torch.tensor([0, *self._lens]).cumsum(0, dtype=torch.int32).to(self._device)
        return self._cu_seqlens

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, count: int, length: int, spec: AttentionSpec) -> Tensor:
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        if spec.softcap is not None:
            return capped_attention(q, k, v, spec).transpose(1, 2).flatten(0, 1)
        mask = None
        if spec.window is not None and spec.window < length:
            key = (length, spec.window)
            if key not in self._masks:
                self._masks[key] = causal_mask(length, length, spec.window, self._device)
            mask = self._masks[key]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2).flatten(0, 1)
