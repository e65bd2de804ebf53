"""Decode batches of a static shape, for capture in a device graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_sdpa.capped import capped_rows
from pegboard_sdpa.rows import Rows


class StaticDecodePlan:
    """Up to `pad_to` sequences of up to `pad_pages` pages, one new token each; everything that changes is in buffers.

    Rows without a sequence read and write page 0, which no sequence owns. Places behind a sequence's last token are never
    read: what an earlier owner of the page left there may be NaN, which a weight of zero does not silence.
    """

    def __init__(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout) -> None:
        if inputs.pad_to is None or inputs.pad_pages is None:
            raise ValueError("a static plan needs pad_to and pad_pages")
        self._layout = layout
        self._table = torch.zeros(inputs.pad_to, inputs.pad_pages, dtype=torch.int64, device=device)
        self._lens = torch.ones(inputs.pad_to, dtype=torch.int64, device=device)
        self._slots = torch.zeros(inputs.pad_to, dtype=torch.int64, device=device)
        self._keys = torch.arange(inputs.pad_pages * layout.page_size, device=device)
        self._reads = torch.zeros(inputs.pad_to, len(self._keys), dtype=torch.int64, device=device)
        self._masks: dict[int | None, Tensor] = {}
        self.update_(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Refill the buffers in place. Raises ValueError when the batch does not fit or is not a pure decode batch."""
        assert inputs.block_table is not None and inputs.slot_mapping is not None
        count, (rows, width) = len(inputs.seq_lens), self._table.shape
        used = [inputs.pages(index, self._layout.page_size) for index in range(count)]
        if any(length != 1 for length in inputs.query_lens):
            raise ValueError("a static plan takes decode batches only: one new token a sequence")
        if count > rows or max(map(len, used), default=0) > width:
            raise ValueError(
                f"the batch has {count} sequences of up to {max(map(len, used))} pages, the plan {rows} x {width}"
            )
        table = torch.zeros(rows, width, dtype=torch.int64)
        for row, pages in enumerate(used):
            table[row, : len(pages)] = torch.tensor(pages)
        lens = torch.ones(rows, dtype=torch.int64)
        lens[:count] = torch.as_tensor(inputs.seq_lens)
        slots = torch.zeros(rows, dtype=torch.int64)
        slots[:count] = inputs.slot_mapping
        for buffer, value in ((self._table, table), (self._lens, lens), (self._slots, slots)):
            buffer.copy_(value)
        self._reads.copy_(self._read_slots())
        for window, mask in self._masks.items():
            mask.copy_(self._mask(window))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, cache: KVCache | None) -> Tensor:
        """[pad_to, heads, D] -> [pad_to, heads, D]."""
        assert cache is not None
        if spec.window not in self._masks:
            self._masks[spec.window] = self._mask(spec.window)
        keys, values = (
            self._write_and_read(rows, new, q.dtype)
            for rows, new in zip(Rows.of(cache, spec.layer), (k, v), strict=True)
        )
        grouped = q.reshape(q.shape[0], spec.num_kv_heads, -1, spec.head_dim)
        mask = self._masks[spec.window]
        if spec.softcap is not None:
            return capped_rows(grouped, keys, values, spec, mask).reshape(q.shape)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=spec.scale)
        return out.reshape(q.shape)

    def _read_slots(self) -> Tensor:
        """Return [pad_to, pad_pages * page_size] slots to read; a place without a token stands for the first token's."""
        size = self._layout.page_size
        slots = self._table.repeat_interleave(size, 1) * size + self._keys % size
        return torch.where(self._keys < self._lens[:, None], slots, slots[:, :1])

    def _mask(self, window: int | None) -> Tensor:
        lens = self._lens[:, None, None, None]
        mask = self._keys < lens
        return mask if window is None else mask & (self._keys >= lens - window)

    def _write_and_read(self, rows: Rows, new: Tensor, dtype: torch.dtype) -> Tensor:
        rows.write(self._slots, new)
        return rows.at(self._reads, dtype).transpose(1, 2)
