"""A batch as the kernels see it: a few arrays of int32, sent to the device in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegboard.types import AttentionInputs, KVLayout
from pegboard_triton.tuning import choice

Array = np.ndarray[Any, np.dtype[np.int32]]

FEW = 8
"""New tokens up to which a sequence is one of few queries over many keys: a decode, or one with proposed tokens behind it."""

ITEM = ("sequence", "chunk", "keys of a chunk", "tokens", "first row", "new tokens", "first page", "")
"""What the eight numbers of an item say: which chunk of which sequence it is, and of that sequence its length, its rows of the batch, and
where its pages begin. Its sequence is -1 where there is no item.
"""

_ALIGNED = 16
"""Places that each array is a multiple of: kernels are compiled for what addresses divide by."""


def _integers(values: Any) -> Array:
    return np.asarray(values, dtype=np.int32).reshape(-1)


def _starts(sizes: Array) -> Array:
    """[N] -> [N + 1]: sums of what comes before."""
    return np.concatenate([np.zeros(1, np.int32), np.cumsum(sizes, dtype=np.int32)])


def _own(queries: Array, inputs: AttentionInputs) -> Array:
    """Return the new tokens of each sequence that are attended for here."""
    if not len(inputs.apart):
        return queries
    own = queries.copy()
    own[np.asarray(inputs.apart)] = 0
    return own


def send(array: Array, device: torch.device, into: Tensor | None = None) -> Tensor:
    """Return an array on the device, in `into` if given. The copy is on its way when this returns.

    Its memory on the host is torch's, which does not hand it out again before the copy has been made.
    """
    source = torch.empty(len(array), dtype=torch.int32, pin_memory=device.type != "cpu")
    source.numpy()[:] = array
    target = torch.empty(len(array), dtype=torch.int32, device=device) if into is None else into[: len(array)]
    return target.copy_(source, non_blocking=True)


@cache
def _processors(device: torch.device) -> int:
    """Return how many programs run side by side at least; for the interpreter, as many as make several chunks of a short sequence."""
    if device.type == "cpu":
        return 8
    properties = torch.get_device_module(device.type).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 64))


class _Tiles:
    """Tiles of queries of the sequences `chosen`, made for the first layer that asks, kept for the others."""

    def __init__(self, chosen: Array, queries: Array, lens: Array, device: torch.device) -> None:
        self._chosen, self._queries, self._past, self._device = (
            chosen,
            queries[chosen],
            (lens - queries)[chosen],
            device,
        )
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return sequence and first query of each tile of `tokens` queries, those with the most keys first."""
        if tokens not in self._made:
            counts = -(-self._queries // tokens)
            within = np.arange(int(counts.sum()), dtype=np.int32) - np.repeat(_starts(counts)[:-1], counts)
            firsts = within * np.int32(tokens)
            order = np.argsort(-(np.repeat(self._past, counts) + firsts), kind="stable")
            packed = send(np.concatenate([np.repeat(self._chosen, counts)[order], firsts[order]]), self._device)
            self._made[tokens] = (packed[: len(order)], packed[len(order) :])
        return self._made[tokens]


class WholePlan:
    """Whole sequences without a cache. seq_lens: int32 [N]. starts: int32 [N + 1], first row of each. tiles: of all of them."""

    layout = None

    def __init__(self, inputs: AttentionInputs, device: torch.device) -> None:
        self._device = device
        self.update_(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch. Not for captured graphs: shapes change."""
        lens = _integers(inputs.query_lens)
        self.num_tokens = int(lens.sum())
        packed = send(np.concatenate([lens, _starts(lens)]), self._device)
        self.seq_lens, self.starts = packed[: len(lens)], packed[len(lens) :]
        self.page_starts = self.pages = packed
        self.tiles = _Tiles(np.flatnonzero(_own(lens, inputs)).astype(np.int32), lens, lens, self._device)


class CachedPlan:
    """Sequences over a paged cache.

    On the device, int32: items [num_items, 8], chunks of keys of the sequences that have at most FEW new tokens, see ITEM. pages: all pages
    of all sequences. slots [T]. For the other sequences: seq_lens [N], starts [N + 1], the first row of each, and page_starts [N], where
    its pages begin; tiles. counters: [N * kv_heads], zeros.

    num_sequences, num_tokens: N and T. most_queries: most new tokens of a sequence of items. few, many: whether there are any items, any
    tiles. Sequences that are `apart` are in neither.
    A plan of a static shape has room for `pad_to` new tokens, at most `pad_queries` of a sequence; those that are not there are sequences
    of one token each, which read and write page 0.
    """

    items: Tensor
    pages: Tensor
    slots: Tensor
    seq_lens: Tensor
    starts: Tensor
    page_starts: Tensor

    def __init__(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout) -> None:
        self.layout = layout
        self._device = device
        self._static = inputs.pad_to is not None
        self._use = choice("attention_split", device)
        if self._static:
            self._reserve(inputs)
        self.update_(inputs)

    def _reserve(self, inputs: AttentionInputs) -> None:
        """Make room for the largest batch of a static plan."""
        rows, width = inputs.pad_to or 0, inputs.pad_pages or 0
        if inputs.device_table is not None:
            self._rows, self._width = rows, inputs.device_table.shape[1]
            self._lay_out(rows, rows, self._most_items(rows), 0)
            self._count(rows, inputs.pad_queries)
            return
        if not width and isinstance(inputs.block_table, Tensor):
            width = inputs.block_table.shape[1]
        if not width:
            raise ValueError(
                "a static plan needs pad_pages, or a block table of one width, to know how many pages may come"
            )
        self._rows, self._width = rows, width
        self._lay_out(rows, rows, self._most_items(rows), 1 + rows * width)
        self._count(rows, inputs.pad_queries)

    def _count(self, rows: int, queries: int) -> None:
        if queries > FEW:
            raise ValueError(f"a plan of a static shape takes up to {FEW} new tokens a sequence, not {queries}")
        self.counters = torch.zeros(rows, self.layout.num_kv_heads, dtype=torch.int32, device=self._device)
        self.most_queries, self.few, self.many = queries, True, False
        self._all, self._ones = np.arange(rows, dtype=np.int32), np.ones(rows, np.int32)

    def _most_items(self, sequences: int) -> int:
        """Return how many items serve: enough programs for the whole device, and for sequences of different lengths to even out."""
        heads = self.layout.num_kv_heads
        return sequences * self._use["chunks"] + -(-self._use["programs"] * _processors(self._device) // heads)

    def _lay_out(self, sequences: int, tokens: int, items: int, pages: int) -> None:
        """Make the device's memory and its parts."""
        others = 0 if self._static else sequences
        sizes = {
            "items": len(ITEM) * items,
            "seq_lens": others,
            "starts": others + 1,
            "page_starts": others,
            "slots": tokens,
            "counters": others * self.layout.num_kv_heads,
        }
        sizes["pages"] = pages
        self._places: dict[str, int] = {}
        total = 0
        for name, size in sizes.items():
            self._places[name] = total
            total += -(-max(size, 1) // _ALIGNED) * _ALIGNED
        self._memory = torch.empty(total, dtype=torch.int32, device=self._device)
        for name, size in sizes.items():
            setattr(self, name, self._memory[self._places[name] : self._places[name] + max(size, 1)])
        self.num_items = items

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch; in the same memory if the plan is of a static shape.

        Raises ValueError when the batch does not fit into it, or a sequence has more new tokens than it takes.
        """
        if inputs.block_table is None or inputs.slot_mapping is None:
            raise ValueError("a batch over a cache has a block table and a slot mapping")
        queries, lens = _integers(inputs.query_lens), _integers(inputs.seq_lens)
        begins, pages = self._pages(inputs, lens)
        if self._static:
            queries, lens = self._padded(queries, lens, pages.size)
            few, own = self._all[: len(lens)], lens
            self.num_tokens = self.num_sequences = self._rows
        else:
            self.num_sequences = len(lens)
            mine = _own(queries, inputs)
            few = np.flatnonzero((mine > 0) & (mine <= FEW)).astype(np.int32)
            many = np.flatnonzero(mine > FEW).astype(np.int32)
            own = lens[few]
        size, seqs, chunks = self._items(few, own)
        if not self._static:
            self._reserve_for(queries, lens, few, many, len(seqs), 1 + pages.size)
        spare = 0  # where a page 0 stands that is no sequence's
        if inputs.device_table is not None:
            self.pages, spare = inputs.device_table.view(-1), inputs.device_table.numel() - inputs.device_table.shape[1]
        if len(begins) < len(lens):
            begins = np.concatenate([begins, np.full(len(lens) - len(begins), spare, np.int32)])
        at, slots = self._places, inputs.slot_mapping
        host = torch.empty(at["pages"] + 1 + pages.size, dtype=torch.int32, pin_memory=self._device.type != "cpu")
        # Written in place: for one sequence, copies between arrays would be most of the work.
        packed = host.numpy()
        items = packed[: self.num_items * len(ITEM)].reshape(self.num_items, len(ITEM))
        used = items[: len(seqs)]
        items[len(seqs) :, 0] = -1
        starts = self._all if self._static and self.most_queries == 1 else _starts(queries)
        used[:, 0], used[:, 1], used[:, 2] = seqs, chunks, size
        for column, values in ((3, lens), (4, starts), (5, queries), (6, begins)):
            used[:, column] = values[seqs]
        if not self._static:
            packed[at["seq_lens"] : at["seq_lens"] + len(lens)] = lens
            packed[at["starts"] : at["starts"] + len(starts)] = starts
            packed[at["page_starts"] : at["page_starts"] + len(lens)] = begins
            packed[at["counters"] : at["pages"]] = 0
        if slots.device.type == "cpu":
            packed[at["slots"] : at["slots"] + len(slots)] = slots.numpy()
            packed[at["slots"] + len(slots) : at["counters"]] = 0
        packed[at["pages"]] = 0
        packed[at["pages"] + 1 :] = pages.reshape(-1)
        self._memory[: len(packed)].copy_(host, non_blocking=True)
        if slots.device.type != "cpu":
            self.slots.zero_()
            self.slots[: len(slots)].copy_(slots)

    def _reserve_for(self, queries: Array, lens: Array, few: Array, many: Array, items: int, pages: int) -> None:
        """Make room for a batch, and say what it consists of."""
        self.few, self.many = len(few) > 0, len(many) > 0
        self.most_queries = int(queries[few].max()) if self.few else 1
        self.num_tokens = int(queries.sum())
        self._lay_out(len(lens), self.num_tokens, items, pages)
        self.tiles = _Tiles(many, queries, lens, self._device)

    def _padded(self, queries: Array, lens: Array, pages: int) -> tuple[Array, Array]:
        """Fill a batch up with sequences of one token, which read and write page 0."""
        tokens, most = int(queries.sum()), self.most_queries
        if tokens > self._rows or (queries < 1).any() or (queries > most).any():
            each = "one" if most == 1 else f"1 to {most}"
            raise ValueError(
                f"a plan of a static shape takes up to {self._rows} new tokens, {each} of a sequence; the batch has {tokens}, by sequence "
                f"{queries.tolist()}"
            )
        if pages > self._rows * self._width:
            raise ValueError(
                f"the batch has {pages} pages, a plan of {self._rows} x {self._width} has room for {self._rows * self._width}"
            )
        if tokens == self._rows:
            return queries, lens
        ones = self._ones[: self._rows - tokens]
        return np.concatenate([queries, ones]), np.concatenate([lens, ones])

    def _pages(self, inputs: AttentionInputs, lens: Array) -> tuple[Array, Array]:
        """Return where each sequence's pages begin, [N], in the table on the device or behind one page 0 that none owns; and the pages that
        are not on the device yet, in any shape.
        """
        counts = -(-lens // self.layout.page_size)
        widest = int(counts.max()) if len(counts) else 0
        rows = None if inputs.table_rows is None else _integers(inputs.table_rows)[: len(lens)]
        table: Tensor | Sequence[Sequence[int]] = inputs.block_table  # type: ignore[assignment]
        if not isinstance(table, Tensor):
            numbers = range(len(lens)) if rows is None else rows.tolist()
            parts = [_integers(table[row][:count]) for row, count in zip(numbers, counts.tolist(), strict=True)]
            short = [i for i, part in enumerate(parts) if len(part) < counts[i]]
            if short:
                raise ValueError(f"sequence {short[0]} has more tokens than its row of block_table has pages for")
            return 1 + _starts(counts)[:-1], np.concatenate([np.zeros(0, np.int32), *parts])
        if widest > table.shape[1]:
            raise ValueError(f"a sequence has {widest} pages, block_table has room for {table.shape[1]}")
        if inputs.device_table is not None:
            owned = np.arange(len(lens), dtype=np.int32) if rows is None else rows
            return owned * np.int32(table.shape[1]), np.zeros(0, np.int32)
        used = table.numpy()[:, :widest]
        block = used[: len(lens)] if rows is None else used.take(rows, 0)
        if 2 * int(counts.sum()) < block.size:
            # Few long rows among short ones: what the others lack is not sent.
            return 1 + _starts(counts)[:-1], block[np.arange(widest) < counts[:, None]]
        return np.arange(1, 1 + len(lens) * max(widest, 1), max(widest, 1), dtype=np.int32), block

    def _items(self, few: Array, own: Array) -> tuple[int, Array, Array]:
        """Return the keys of a chunk, and sequence and number of each chunk of the sequences `few`, which have `own` tokens."""
        room = self._most_items(self._rows if self._static else len(few)) - len(few)
        quantum = self._use["quantum"]
        # For each sequence one chunk more, at most, than its keys fill: these sizes always fit.
        size = max(-(-int(own.sum(dtype=np.int64)) // (room * quantum)) * quantum, quantum) if room > 0 else 1 << 30
        counts = -(-own // np.int32(size))
        if len(few) == 1:
            chunks = np.arange(counts[0], dtype=np.int32)
            return size, np.full(len(chunks), few[0], np.int32), chunks
        begins = _starts(counts)
        chunks = np.arange(begins[-1], dtype=np.int32) - np.repeat(begins[:-1], counts)
        return size, np.repeat(few, counts), chunks
