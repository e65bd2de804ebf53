"""One batch as the library's attention sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pegboard.types import AttentionInputs, KVCache, KVLayout

_Address, _Int, _Long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

_SMALL_WORK = 1 << 15
"""Products of queries and keys up to which a call keeps Python's lock: it is over before anyone else could use it well, and giving
the lock away would mean to wait for it while other threads run."""

_WRONG = {
    -1: "there is no memory for the plan",
    -2: "sequence {at} has a negative number of new tokens",
    -3: "sequence {at} has more new tokens than tokens, or, without a cache, not as many",
    -4: "the lengths add up to {at} new tokens, which slot_mapping does not have, or which are too many",
    -5: "sequence {at} names a row that block_table does not have",
    -6: "sequence {at} has more tokens than its row of block_table has pages for",
    -7: "sequence {at} has a negative page",
    -8: "token {at} has a negative slot",
}


class Functions:
    """The library's attention, its arguments declared."""

    def __init__(self, library: ctypes.CDLL) -> None:
        held = ctypes.PyDLL(library._name)
        self.new: Any = held.peg_attention_plan_new
        self.new.restype, self.new.argtypes = _Address, []
        self.free: Any = held.peg_attention_plan_free
        self.free.restype, self.free.argtypes = None, [_Address]
        self.set: Any = held.peg_attention_plan_set
        table: list[Any] = [_Address, _Long, _Long, _Address]
        self.set.argtypes = [_Address, _Int, _Address, _Address, _Long, *table, _Address, _Int, _Int, _Address]
        self.packed: Any = library.peg_packed_attention
        # The same function twice: keeping Python's lock, and giving it away while it runs.
        self.attend_held: Any = held.peg_attention
        self.attend_free: Any = ctypes.CDLL(library._name).peg_attention
        for attend in (self.attend_held, self.attend_free):
            strided: list[Any] = [_Address, _Long]
            attend.argtypes = [_Address, _Address, *strided * 3, *[_Address] * 5, _Long]


class CpuPlan:
    """A batch, laid out in C. It belongs to one thread at a time.

    attend: the function that computes over it. handle: its address. rows: tokens of the batch. layout: of its cache, None without.
    """

    def __init__(self, functions: Functions, inputs: AttentionInputs, layout: KVLayout | None) -> None:
        self._functions = functions
        self._free = functions.free  # still there when modules are torn down
        self.layout = layout
        self.handle = functions.new()
        if not self.handle:
            raise MemoryError("no memory for an attention plan")
        self.update_(inputs)

    def __del__(self) -> None:
        handle, self.handle = getattr(self, "handle", None), None
        if handle:
            self._free(handle)

    def update_(self, inputs: AttentionInputs) -> None:
        """Make this a plan for another batch. Raises ValueError naming what does not fit together."""
        queries, lens = _integers(inputs.query_lens), _integers(inputs.seq_lens)
        if len(queries) != len(lens):
            raise ValueError(f"query_lens has {len(queries)} entries, seq_lens {len(lens)}: one a sequence is needed")
        if inputs.pad_to is not None:
            inputs = _padded(inputs)
            queries, lens = _integers(inputs.query_lens), _integers(inputs.seq_lens)
        self.rows = int(queries.sum())
        self.attend = self._functions.attend_free
        if self.rows * (int(lens.max()) if len(lens) else 0) <= _SMALL_WORK:
            self.attend = self._functions.attend_held
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        table = slots = rows = None
        if self.layout is not None:
            if inputs.block_table is None or inputs.slot_mapping is None:
                raise ValueError("a batch over a cache has a block table and a slot mapping")
            table, slots = _table(inputs.block_table), inputs.slot_mapping.to("cpu", torch.int64).contiguous()
            rows = None if inputs.table_rows is None else _integers(inputs.table_rows)
            count = len(table) if rows is None else len(rows)
            if count < len(queries):
                raise ValueError(f"block_table names pages for {count} sequences of {len(queries)}")
        self._kept = (table, slots)  # which the library only points to
        at = _Long()
        code = self._functions.set(
            self.handle,
            len(queries),
            queries.data_ptr(),
            lens.data_ptr(),
            -1 if slots is None else slots.numel(),
            None if table is None else table.data_ptr(),
            0 if table is None else table.shape[0],
            0 if table is None else table.shape[1],
            None if rows is None else rows.data_ptr(),
            None if slots is None else slots.data_ptr(),
            1 if self.layout is None else self.layout.page_size,
            int(self.layout is not None and self.layout.order == "PHSD"),
            ctypes.byref(at),
        )
        if code:
            self.rows = 0
            raise ValueError("an attention batch does not fit together: " + _WRONG[code].format(at=at.value))

    def tensors(self, cache: KVCache, layer: int) -> tuple[Tensor, Tensor, int, int]:
        """Return a layer's keys and values and the addresses of their scales, which are as the plan's layout says.

        Raises ValueError when they are not.
        """
        k, v = cache.k[layer], cache.v[layer]
        seen = self._seen.get(layer)
        if seen is None or seen[0] is not k or seen[1] is not v:
            self._check(cache, layer)
            self._seen[layer] = (k, v)
        if cache.k_scale is None or cache.v_scale is None:
            return k, v, 0, 0
        return k, v, cache.k_scale[layer].data_ptr(), cache.v_scale[layer].data_ptr()

    def _check(self, cache: KVCache, layer: int) -> None:
        layout = self.layout
        if layout is None:
            raise ValueError("a plan without a layout was made for a batch without a cache")
        shape: tuple[int, ...] = layout.shape(len(cache.k[layer]))
        dtype: torch.dtype = getattr(torch, layout.dtype)
        wanted = [(name, getattr(cache, name), shape, dtype) for name in ("k", "v")]
        if layout.scaled:
            wanted += [(name, getattr(cache, name), shape[:-1], torch.float32) for name in ("k_scale", "v_scale")]
        for name, tensors, size, kind in wanted:
            if tensors is None:
                raise ValueError(f"a cache of {layout.dtype} needs scales, this one has no {name}")
            one = tensors[layer]
            if one.shape != size or one.dtype != kind or not one.is_contiguous() or one.device.type != "cpu":
                raise ValueError(
                    f"{name}[{layer}] of the cache is {tuple(one.shape)} of {one.dtype} on {one.device}, the plan's layout wants "
                    f"a contiguous {tuple(size)} of {kind} on the cpu"
                )


def _padded(inputs: AttentionInputs) -> AttentionInputs:
    """Fill a decode batch of a static shape up with sequences of one token, which read and write page 0."""
    queries, lens = _integers(inputs.query_lens), _integers(inputs.seq_lens)
    more = (inputs.pad_to or 0) - len(queries)
    if more < 0 or (len(queries) and int(queries.max()) != 1) or len(queries) != int(queries.sum()):
        raise ValueError(
            f"a plan of a static shape takes up to {inputs.pad_to} sequences of one new token each; the batch has {len(queries)} "
            f"with {int(queries.sum())}"
        )
    if not more:
        return inputs
    if inputs.block_table is None or inputs.slot_mapping is None:
        raise ValueError("a batch of a static shape is one over a cache")
    ones, table = torch.ones(more, dtype=torch.int32), _table(inputs.block_table)
    rows = torch.arange(len(queries), dtype=torch.int32) if inputs.table_rows is None else _integers(inputs.table_rows)
    table = table if table.shape[1] else table.new_zeros(len(table), 1)
    return AttentionInputs(
        torch.cat([queries, ones]),  # type: ignore[arg-type]  # a tensor does as an array does
        torch.cat([lens, ones]),  # type: ignore[arg-type]
        torch.cat([table, table.new_zeros(1, table.shape[1])]),
        torch.cat([inputs.slot_mapping.to("cpu", torch.int64), torch.zeros(more, dtype=torch.int64)]),
        inputs.num_decodes,
        table_rows=torch.cat([rows, ones * len(table)]),  # type: ignore[arg-type]
    )


def _integers(values: Any) -> Tensor:
    """[N] int32 of a list or an array, without a copy where it is one already."""
    return torch.as_tensor(values, dtype=torch.int32).contiguous()


def _table(table: Sequence[Sequence[int]] | Tensor) -> Tensor:
    """[S, W] int32; rows of a list are filled up."""
    if isinstance(table, Tensor):
        return table.to("cpu", torch.int32).contiguous()
    width = max(map(len, table), default=0)
    filled = [[*row, *[0] * (width - len(row))] for row in table]
    return torch.tensor(filled, dtype=torch.int32).view(len(filled), width)
