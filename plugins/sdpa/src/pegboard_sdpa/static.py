"""Decode batches of a static shape, for capture in a device graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_sdpa.capped import capped_rows
from pegboard_sdpa.rows import Rows


class StaticDecodePlan:
    """Up to `pad_to` new tokens of sequences of up to `pad_pages` pages, at most `pad_queries` each; all that changes is in buffers.

    A row is a token with all that it may see; that those before it of its own sequence are in the cache by then is all it needs of them.
    Rows without a token read and write page 0, which no sequence owns. Places behind the last token that a row sees are never
    read: what an earlier owner of the page left there may be NaN, which a weight of zero does not silence.
    """

    def __init__(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout) -> None:
        if inputs.pad_to is None or inputs.pad_pages is None:
            raise ValueError("a static plan needs pad_to and pad_pages")
        self._layout, self._queries = layout, inputs.pad_queries
        self._table = torch.zeros(inputs.pad_to, inputs.pad_pages, dtype=torch.int64, device=device)
        self._lens = torch.ones(inputs.pad_to, dtype=torch.int64, device=device)
        self._slots = torch.zeros(inputs.pad_to, dtype=torch.int64, device=device)
        self._keys = torch.arange(inputs.pad_pages * layout.page_size, device=device)
        self._reads = torch.zeros(inputs.pad_to, len(self._keys), dtype=torch.int64, device=device)
        self._masks: dict[int | None, Tensor] = {}
        self.update_(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Refill the buffers in place. Raises ValueError when the batch does not fit."""
        assert inputs.block_table is not None and inputs.slot_mapping is not None
        queries = torch.as_tensor(inputs.query_lens, dtype=torch.int64)
        count, (rows, width) = int(queries.sum()), self._table.shape
        used = [inputs.pages(index, self._layout.page_size) for index in range(len(queries))]
        if len(queries) and not 1 <= int(queries.min()) <= int(queries.max()) <= self._queries:
            raise ValueError(
                f"a static plan takes decode batches only: 1 to {self._queries} new tokens a sequence, not {queries.tolist()}"
            )
        if count > rows or max(map(len, used), default=0) > width:
            raise ValueError(
                f"the batch has {count} new tokens of sequences of up to {max(map(len, used))} pages, the plan {rows} x {width}"
            )
        table = torch.zeros(rows, width, dtype=torch.int64)
        lens, slots = torch.ones(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        row = 0
        for pages, new, length in zip(used, queries.tolist(), inputs.seq_lens, strict=True):
            table[row : row + new, : len(pages)] = torch.tensor(pages)
            lens[row : row + new] = torch.arange(int(length) - new, int(length)) + 1
            row += new
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
