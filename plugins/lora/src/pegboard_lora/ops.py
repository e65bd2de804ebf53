"""The ops that slots compute with, and their implementation in products of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.ops import register
from pegboard_lora.bank import Bank, EmbeddingBank
from pegboard_lora.rows import Block, Run, SlotRows


@register(
    "lora_add_",
    "(out [T, N], x [T, K], rows: SlotRows, bank: Bank, members, starts) -> out, in place: row t gets x_t A^T B^T of its slot's factors "
    "for members[i] in the columns from starts[i]; nothing where the slot is none or empty",
    differentiable=False,
)
def lora_add_(
    out: Tensor, x: Tensor, rows: SlotRows, bank: Bank, members: Sequence[int], starts: Sequence[int]
) -> Tensor:
    """Computed in the factors' dtype and added in that of the output."""
    for part in rows.parts:
        if isinstance(part, Run):
            _add_run(x, out, part, bank, members, starts)
        else:
            _add_block(x, out, part, bank, members, starts)
    return out


def _add_run(x: Tensor, out: Tensor, run: Run, bank: Bank, members: Sequence[int], starts: Sequence[int]) -> None:
    factors = bank.factors.get(run.slot)
    if factors is None:
        return
    rows = slice(run.start, run.stop)
    inner = torch.mm(_cast(x[rows], factors.down.dtype), factors.down.t())
    for member, start in zip(members, starts, strict=True):
        found = factors.ups[member]
        if found is None:
            continue
        columns, up = found
        target = out[rows, start : start + up.shape[1]]
        if target.dtype == up.dtype:
            target.addmm_(inner[:, columns], up)
        else:
            target.add_(torch.mm(inner[:, columns], up))


def _add_block(x: Tensor, out: Tensor, block: Block, bank: Bank, members: Sequence[int], starts: Sequence[int]) -> None:
    stacked = bank.stack(block.slots)
    if stacked is None:
        return
    rows = slice(block.start, block.stop)
    own = _cast(x[rows], stacked.down.dtype)
    if block.padded:
        own = F.pad(own, (0, 0, 0, 1))
    inner = torch.bmm(own.index_select(0, block.gather).view(len(block.slots), -1, x.shape[1]), stacked.down)
    for member, start in zip(members, starts, strict=True):
        found = stacked.ups[member]
        if found is None:
            continue
        columns, up = found
        delta = torch.bmm(inner[:, :, columns], up).view(-1, up.shape[2])
        out[rows, start : start + up.shape[2]].add_(delta.index_select(0, block.back))


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


@register(
    "lora_embed_",
    "(out [T, H], ids [T] int64, rows: SlotRows, bank: EmbeddingBank) -> out, in place: row t gets A^T[ids[t]] B^T of its slot's factors; "
    "nothing where the slot is none or empty",
    differentiable=False,
)
def lora_embed_(out: Tensor, ids: Tensor, rows: SlotRows, bank: EmbeddingBank) -> Tensor:
    """Computed in the factors' dtype and added in that of the output."""
    slots = rows.host
    for slot in np.unique(slots).tolist():
        if (found := bank.factors.get(slot)) is None:
            continue
        own = torch.from_numpy(np.flatnonzero(slots == slot)).to(out.device)
        down, up = found
        delta = torch.mm(down.index_select(0, ids.index_select(0, own)), up)
        out.index_add_(0, own, _cast(delta, out.dtype))
    return out
