"""Ops of pegboard-lora: what slots add to linear layers, in two kernels for all that read one input, and to embeddings, in one.

The kernels find the factors in the bank's table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton.lora.few import embed_rows, expand_few, shrink_few
from pegboard_triton.lora.grouped import expand_grouped, shrink_grouped
from pegboard_triton.moe.order import order_pairs
from pegboard_triton.operators import TYPES, differentiates, on, takes
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

_ALIGNED = 16


def lora_add_(out: Tensor, x: Tensor, rows: Any, bank: Any, members: Sequence[int], starts: Sequence[int]) -> Tensor:
    """Add to each row of `out` [T, N] what its slot's adapter adds, in place: op `lora_add_`. rows, bank: `SlotRows`, `Bank` there."""
    if not len(x):
        return out
    table: Tensor | None = bank.table
    fits = (
        takes(out, x)
        and x.dim() == out.dim() == 2
        and x.stride(1) == out.stride(1) == 1
        and bank.dtype in (x.dtype, None)
        and not differentiates(out, x)
    )
    if not fits:
        plain: Tensor = registered()["lora_add_"].function(out, x, rows, bank, members, starts)
        return plain
    if table is None:
        return out
    with on(x.device):
        launch_(out, x, rows, bank, table, members, starts)
    return out


def lora_embed_(out: Tensor, ids: Tensor, rows: Any, bank: Any) -> Tensor:
    """Add to each row of `out` [T, H] what its slot's adapter adds to the embedding of its id, in place: op `lora_embed_`."""
    if not len(ids):
        return out
    table: Tensor | None = bank.table
    fits = takes(out) and out.stride(1) == 1 and ids.is_contiguous() and bank.dtype in (out.dtype, None)
    if not fits or differentiates(out):
        plain: Tensor = registered()["lora_embed_"].function(out, ids, rows, bank)
        return plain
    if table is None:
        return out
    count, columns = out.shape
    use = choice("lora", out.device, rows=count)
    grid = (count, triton.cdiv(columns, use["EXPAND_N"]))
    same = {"SLOTS": bank.num_slots, "RECORD": table.shape[1], "COLUMNS": columns}
    blocks = {"BLOCK_R": use["EXPAND_R"], "BLOCK_N": use["EXPAND_N"], "num_warps": use["warps"]}
    with on(out.device):
        embed_rows[grid](ids, rows.on(out.device), table, out, out.stride(0), **same, **blocks)
    return out


def launch_(
    out: Tensor, x: Tensor, rows: Any, bank: Any, table: Tensor, members: Sequence[int], starts: Sequence[int]
) -> None:
    """Compute the inner products of all members, [T, ranks] in float32, then add theirs with the other factors."""
    count, inputs = x.shape
    use = choice("lora", x.device, rows=count)
    tiles, aligned = tiles_of(bank, members, starts, use["EXPAND_N"], x.device)
    slots = rows.on(x.device)
    width = -(-len(bank.outputs) * bank.max_rank // _ALIGNED) * _ALIGNED
    same = {"SLOTS": bank.num_slots, "RECORD": table.shape[1], "WIDTH": width}
    shrink = {"INPUTS": inputs, "BLOCK_R": use["SHRINK_R"], "BLOCK_K": use["SHRINK_K"], "num_warps": use["warps"]}
    expand = {"ALIGNED": aligned, "BLOCK_R": use["EXPAND_R"], "BLOCK_N": use["EXPAND_N"], "num_warps": use["warps"]}
    rank_tiles = triton.cdiv(width, use["SHRINK_R"])
    if not use["BLOCK_M"]:
        inner = torch.empty(count, width, dtype=torch.float32, device=x.device)
        shrink_few[(count, rank_tiles)](x, slots, table, inner, x.stride(0), **same, **shrink)
        expand_few[(count, len(tiles))](inner, slots, table, tiles, out, out.stride(0), **same, **expand)
        return
    order, offsets = _order(rows, slots, bank.num_slots)
    part = triton.cdiv(triton.cdiv(inputs, use["PARTS"]), use["SHRINK_K"]) * use["SHRINK_K"]
    parts = triton.cdiv(inputs, part)
    # So many blocks serve however the rows are divided among the slots.
    blocks = count // use["BLOCK_M"] + min(bank.num_slots, count)
    same |= {"POWER": triton.next_power_of_2(bank.num_slots), "BLOCK_M": use["BLOCK_M"], "num_stages": use["stages"]}
    inner = torch.empty(parts, count, width, dtype=torch.float32, device=x.device)
    shrink_grouped[(blocks, rank_tiles, parts)](
        x, order, offsets, table, inner, count, x.stride(0), PART=part, **same, **shrink
    )
    expand_grouped[(blocks, len(tiles))](
        inner, order, offsets, table, tiles, out, count, out.stride(0), PARTS=parts, **same, **expand
    )


def tiles_of(
    bank: Any, members: Sequence[int], starts: Sequence[int], block: int, device: torch.device
) -> tuple[Tensor, bool]:
    """Return int32 [tiles, 4] on the device, for every `block` columns of each member: member, first column of it, that column in `out`,
    columns of the member; and whether all of these but the first are multiples of 16. Made once for a bank.
    """
    key = ("tiles", *members, *starts, block)
    if key not in bank.kept:
        found = [
            (member, column, start + column, bank.outputs[member])
            for member, start in zip(members, starts, strict=True)
            for column in range(0, bank.outputs[member], block)
        ]
        aligned = not any(number % _ALIGNED for _, *numbers in found for number in numbers)
        bank.kept[key] = torch.tensor(found, dtype=torch.int32, device=device), aligned
    made: tuple[Tensor, bool] = bank.kept[key]
    return made


def _order(rows: Any, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return the rows in the order of their slots, made by the first layer that asks."""
    if "order" not in rows.kept:
        rows.kept["order"] = order_pairs(slots[:, None], num_slots)
    made: tuple[Tensor, Tensor] = rows.kept["order"]
    return made


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the ops, where an adapter that is served has registered them."""
    offered = phase != "train" and dtype in TYPES
    return {name: function for name, function in _OPS.items() if name in registered()} if offered else {}


_OPS: dict[str, Callable[..., Any]] = {"lora_add_": lora_add_, "lora_embed_": lora_embed_}
