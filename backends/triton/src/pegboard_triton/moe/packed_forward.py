"""The launches of a forward pass over packed experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from pegboard_triton.moe.forward import FEW, SORTED, Routing, combined, route
from pegboard_triton.moe.packed import packed_down, packed_gate_up
from pegboard_triton.quantized.packed import NF4, nf4_values
from pegboard_triton.tuning import choice

_GROUPS = (32, 64, 128, 256)
"""Columns of a scale that a step of the kernels may have."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Matrices [E, rows, columns] of a format. codes: contiguous bytes, two columns in one for those of 4 bits.

    scales: float32 [E, R, C], contiguous; one for `shared` rows and `scaled` columns, where gate and up begin anew. Or uint8 codes of
    `table`, `coded` of which share one of `nested`, and one of `offset` is to be added: both for each of gate and up, float32.
    """

    form: Any
    codes: Tensor
    scales: Tensor
    columns: int
    shared: int
    scaled: int
    table: Tensor | None = None
    nested: Tensor | None = None
    offset: Tensor | None = None
    coded: int = 0

    @property
    def rows(self) -> int:
        return self.codes.shape[1]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What kernels read: codes, scales and what those stand for, and what codes of NF4 stand for."""
        numbers = nf4_values(self.codes.device) if self.form == NF4 else None
        return self.codes, self.scales, self.table, self.nested, self.offset, numbers

    def fits(self) -> bool:
        """Return whether the kernels take such codes and scales."""
        whole = all(
            tensor is None or tensor.is_contiguous() for tensor in (self.codes, self.scales, self.nested, self.offset)
        )
        return whole and (self.scaled >= self.columns or self.scaled in _GROUPS)

    def constants(self, use: Mapping[str, int]) -> dict[str, Any]:
        """Return what a kernel is compiled with."""
        found: dict[str, Any] = {
            "FORMAT": self.form,
            "SHARED": self.shared,
            "SCALED": self.scaled,
            "NESTED": self.coded,
        }
        found.update(use)
        if self.scaled < self.columns:
            found["BLOCK_K"] = self.scaled
        return found


def packed_forward(
    x: Tensor,
    gate_up: Experts,
    down: Experts,
    ids: Tensor,
    weights: Tensor,
    activation: str,
    settings: Mapping[str, Mapping[str, int]] | None = None,
) -> Tensor:
    """Return [T, H]. x: [T, H], rows contiguous in themselves. ids, weights: [T, K], contiguous. settings: in place of the stored ones."""
    experts, inner, hidden = gate_up.codes.shape[0], gate_up.rows // 2, gate_up.columns
    if not ids.numel():
        return torch.zeros_like(x)
    sizes = {"bytes": x.element_size(), "rows": triton.cdiv(ids.numel(), experts), "pairs": ids.numel()}
    given = settings or {}
    way = (given.get("way") or choice("moe_packed", x.device, **sizes))["way"]
    routing = route(ids, experts, FEW if way != SORTED else SORTED)
    few = triton.next_power_of_2(routing.pairs) if routing.way == FEW else 0
    shape = {"HIDDEN": hidden, "INNER": inner, "EXPERTS": experts, "FEW": few}
    shape["WIDTH"] = triton.next_power_of_2(experts)
    act = torch.empty(routing.pairs, inner, dtype=x.dtype, device=x.device)
    use = given.get("gate_up") or choice("moe_packed_gate_up", x.device, **sizes)
    grid, blocks = _grid(routing, use, inner)
    packed_gate_up[grid](
        x,
        *gate_up.tensors,
        routing.ids,
        routing.order,
        routing.offsets,
        act,
        routing.pairs,
        blocks,
        x.stride(0),
        TOP_K=routing.top_k,
        ACTIVATION=activation,
        **shape,
        **gate_up.constants(use),
    )
    parts = torch.empty(routing.pairs, hidden, dtype=x.dtype, device=x.device)
    use = given.get("down") or choice("moe_packed_down", x.device, **sizes)
    grid, blocks = _grid(routing, use, hidden)
    packed_down[grid](
        act,
        *down.tensors,
        routing.ids,
        routing.order,
        routing.offsets,
        weights,
        parts,
        routing.pairs,
        blocks,
        **shape,
        **down.constants(use),
    )
    return combined(parts, routing)


def _grid(routing: Routing, use: Mapping[str, int], columns: int) -> tuple[tuple[int], int]:
    blocks = routing.blocks(use["BLOCK_M"])
    return (blocks * triton.cdiv(columns, use["BLOCK_N"]),), blocks
