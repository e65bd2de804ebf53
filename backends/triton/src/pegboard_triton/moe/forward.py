"""The launches of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pegboard_triton.moe import grouped, single
from pegboard_triton.moe.order import order_pairs
from pegboard_triton.tuning import choice

SINGLE, FEW, SORTED = range(3)
"""Ways: rows of weights one by one; tiles that find their rows by themselves; tiles of pairs that were put in order before."""

Settings = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Routing:
    """Which expert each pair goes to. ids: [T, K] integers, contiguous. order, offsets: as of `order_pairs`; None in the other ways."""

    ids: Tensor
    experts: int
    way: int
    order: Tensor | None = None
    offsets: Tensor | None = None

    @property
    def pairs(self) -> int:
        return self.ids.numel()

    @property
    def top_k(self) -> int:
        return self.ids.shape[1]

    def blocks(self, rows: int) -> int:
        """Return how many blocks of so many rows there may be at most, however pairs are spread."""
        return self.pairs if self.way == FEW else self.pairs // rows + self.experts


def route(ids: Tensor, experts: int, way: int) -> Routing:
    """Return the routing, in order where the way wants it."""
    if way != SORTED:
        return Routing(ids, experts, way)
    order, offsets = order_pairs(ids, experts)
    return Routing(ids, experts, way, order, offsets)


def gate_up(x: Tensor, weight: Tensor, routing: Routing, activation: str, use: Settings) -> Tensor:
    """Return activation(gate) * up [P, I], in the order of the routing. x: [T, H]. weight: [E, 2 I, H]."""
    experts, width, hidden = weight.shape
    inner = width // 2
    act = torch.empty(routing.pairs, inner, dtype=x.dtype, device=x.device)
    if routing.way == SINGLE:
        single.single_gate_up[(routing.pairs, triton.cdiv(inner, use["BLOCK_N"]))](
            x,
            weight,
            routing.ids,
            act,
            x.stride(0),
            HIDDEN=hidden,
            INNER=inner,
            EXPERTS=experts,
            TOP_K=routing.top_k,
            ACTIVATION=activation,
            **use,
        )
        return act
    use = _readable(use, weight)
    blocks = routing.blocks(use["BLOCK_M"] + use["TAIL"])
    tiles: Any = weight
    if use["DESCRIBED"]:
        tiles = TensorDescriptor.from_tensor(weight.view(-1, hidden), [use["BLOCK_N"], use["BLOCK_K"]])
    grouped.gate_up[(blocks * triton.cdiv(inner, use["BLOCK_N"]),)](
        x,
        tiles,
        routing.ids,
        routing.order,
        routing.offsets,
        act,
        routing.pairs,
        blocks,
        x.stride(0),
        HIDDEN=hidden,
        INNER=inner,
        TOP_K=routing.top_k,
        ACTIVATION=activation,
        **_common(routing),
        **use,
    )
    return act


def down(act: Tensor, weight: Tensor, routing: Routing, scales: Tensor, use: Settings) -> Tensor:
    """Return [T, H], the sum over each token's pairs of scale * act weight^T. weight: [E, H, I]. scales: [T, K] float32."""
    experts, hidden, inner = weight.shape
    tokens, top_k = routing.ids.shape
    if routing.way == SINGLE:
        out = torch.empty(tokens, hidden, dtype=act.dtype, device=act.device)
        shape = {"HIDDEN": hidden, "INNER": inner, "EXPERTS": experts, "TOP_K": top_k}
        grid = (triton.cdiv(hidden, use["BLOCK_N"]), tokens)
        single.single_down[grid](act, weight, routing.ids, scales, out, **shape, **use)
        return out
    parts = torch.empty(routing.pairs, hidden, dtype=act.dtype, device=act.device)
    use = _readable(use, act, weight)
    blocks = routing.blocks(use["BLOCK_M"] + use["TAIL"])
    rows: Any = act
    tiles: Any = weight
    if use["DESCRIBED"]:
        rows = TensorDescriptor.from_tensor(act, [use["BLOCK_M"], use["BLOCK_K"]])
        tiles = TensorDescriptor.from_tensor(weight.view(-1, inner), [use["BLOCK_N"], use["BLOCK_K"]])
    grouped.down[(blocks * triton.cdiv(hidden, use["BLOCK_N"]),)](
        act,
        rows,
        tiles,
        routing.ids,
        routing.order,
        routing.offsets,
        scales,
        parts,
        routing.pairs,
        blocks,
        HIDDEN=hidden,
        INNER=inner,
        **_common(routing),
        **use,
    )
    return combined(parts, routing)


def combined(parts: Tensor, routing: Routing) -> Tensor:
    """Return [T, H], the sum over each token's pairs. parts: [P, H], by pair."""
    tokens, hidden = routing.ids.shape[0], parts.shape[1]
    out = torch.empty(tokens, hidden, dtype=parts.dtype, device=parts.device)
    width = min(triton.next_power_of_2(hidden), 1024)
    grouped.combine[(tokens, triton.cdiv(hidden, width))](
        parts,
        routing.ids,
        out,
        HIDDEN=hidden,
        EXPERTS=routing.experts,
        TOP_K=routing.top_k,
        BLOCK=width,
        num_warps=4,
    )
    return out


def forward(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, ids: Tensor, scales: Tensor, activation: str
) -> Tensor:
    """Return [T, H]; the tensors as of `gate_up` and `down`, x with rows that are contiguous in themselves, the others contiguous."""
    experts = down_weight.shape[0]
    if not ids.numel():
        return torch.zeros_like(x)
    sizes = {"bytes": x.element_size(), "rows": triton.cdiv(ids.numel(), experts), "pairs": ids.numel()}
    way = choice("moe", x.device, **sizes)["way"]
    routing = route(ids, experts, way)
    names = ("moe_single_gate_up", "moe_single_down") if way == SINGLE else ("moe_gate_up", "moe_down")
    use_up, use_down = (choice(name, x.device, **sizes) for name in names)
    act = gate_up(x, gate_up_weight, routing, activation, use_up)
    return down(act, down_weight, routing, scales, use_down)


def _readable(use: Settings, *tensors: Tensor) -> Settings:
    """Return the settings, without tensor descriptors where one could not be made: their rows begin at multiples of 16 bytes."""
    if use["DESCRIBED"] and any(t.data_ptr() % 16 or t.shape[-1] * t.element_size() % 16 for t in tensors):
        return {**use, "DESCRIBED": 0}
    return use


def _common(routing: Routing) -> dict[str, int]:
    few = triton.next_power_of_2(routing.pairs) if routing.way == FEW else 0
    return {"EXPERTS": routing.experts, "WIDTH": triton.next_power_of_2(routing.experts), "FEW": few}
