"""Op `moe` by these kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.nn import grouped as reference
from pegboard.ops import registered
from pegboard_triton.moe.forward import forward
from pegboard_triton.moe.nf4 import nf4_experts, nf4_grouped
from pegboard_triton.moe.packed_forward import Experts, packed_forward
from pegboard_triton.moe.router import moe_route
from pegboard_triton.moe.training import Mixture
from pegboard_triton.operators import TYPES, differentiates, on, operator, takes
from pegboard_triton.quantized.packed import FLOAT8, INT4, INT8

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase


def _fake(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape)


@operator("moe(Tensor x, Tensor gate_up, Tensor down, Tensor ids, Tensor weights, str activation) -> Tensor", _fake)
def _moe(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
    return forward(x, gate_up, down, ids.contiguous(), weights.contiguous(), activation)


def _with_gradients(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
    """Compute what keeps little for the backward pass."""
    out: Tensor = Mixture.apply(x, gate_up, down, ids, weights, activation)
    return out


_differentiable: Callable[..., Tensor] = _with_gradients


def moe(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str = "silu") -> Tensor:
    """[T, H] -> [T, H]: op `moe`. A pair whose id is no expert adds nothing."""
    if not (
        takes(x, gate_up, down) and activation in reference.GATED and gate_up.is_contiguous() and down.is_contiguous()
    ):
        return reference.moe(x, gate_up, down, ids, weights, activation)
    if differentiates(x, gate_up, down, weights):
        return _differentiable(x, gate_up, down, ids, weights, activation)
    x = x if x.stride(-1) == 1 else x.contiguous()
    result: Tensor = _moe(x, gate_up, down, ids, weights, activation)
    return result


def _int8_moe(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def int8_moe(
        gate_up: Tensor,
        gate_up_scales: Tensor,
        down: Tensor,
        down_scales: Tensor,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        activation: str = "silu",
    ) -> Tensor:
        """Op `int8_moe` of pegboard-int8."""
        experts = [
            Experts(INT8, codes, scales, codes.shape[2], 1, codes.shape[2])
            for codes, scales in ((gate_up, gate_up_scales), (down, down_scales))
        ]
        out = _packed(experts, x, ids, weights, activation)
        if out is None:
            return fallback(gate_up, gate_up_scales, down, down_scales, x, ids, weights, activation)
        return out

    return int8_moe


def _int4_moe(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def int4_moe(
        gate_up: Tensor,
        gate_up_scales: Tensor,
        down: Tensor,
        down_scales: Tensor,
        rounded: bool,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        activation: str = "silu",
    ) -> Tensor:
        """Op `int4_moe` of pegboard-int4, where inputs are not rounded: their range is that of a whole row."""
        experts = [
            Experts(INT4, words.view(torch.uint8), scales, words.shape[2] * 8, 1, words.shape[2] * 8 // scales.shape[2])
            for words, scales in ((gate_up, gate_up_scales), (down, down_scales))
            if words.is_contiguous()
        ]
        out = None if rounded else _packed(experts, x, ids, weights, activation)
        if out is None:
            return fallback(gate_up, gate_up_scales, down, down_scales, rounded, x, ids, weights, activation)
        return out

    return int4_moe


def _fp8_moe(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def fp8_moe(
        gate_up: Tensor,
        gate_up_scales: Tensor,
        down: Tensor,
        down_scales: Tensor,
        block: int | None,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        activation: str = "silu",
    ) -> Tensor:
        """Op `fp8_moe` of pegboard-fp8."""
        experts = [
            Experts(FLOAT8, codes.view(torch.uint8), scales, codes.shape[2], block or rows, block or codes.shape[2])
            for codes, scales, rows in (
                (gate_up, gate_up_scales, gate_up.shape[1] // 2),
                (down, down_scales, down.shape[1]),
            )
        ]
        out = _packed(experts, x, ids, weights, activation)
        if out is None:
            return fallback(gate_up, gate_up_scales, down, down_scales, block, x, ids, weights, activation)
        return out

    return fp8_moe


def _nf4_moe(fallback: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def nf4_moe(*values: Any) -> Tensor:
        """Op `nf4_moe` of pegboard-nf4, where a block of weights is part of a row."""
        codes, scales, nested, offset, down_codes, down_scales, down_nested, down_offset, *given = values
        x, ids, weights, *activation = given
        hidden = x.shape[1]
        inner = down_codes.shape[1] * 2 // max(hidden, 1)
        found = (
            nf4_experts(codes, scales, nested, offset, hidden),
            nf4_experts(down_codes, down_scales, down_nested, down_offset, inner),
        )
        experts = [each for each in found if each is not None]
        out = _packed(experts, x, ids, weights, activation[0] if activation else "silu")
        return fallback(*values) if out is None else out

    return nf4_moe


def _packed(experts: list[Experts], x: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor | None:
    """Return [T, H] from gate-up and down experts; None where kernels do not take them, or a gradient is asked for."""
    fits = takes(x) and activation in reference.GATED and not differentiates(x, weights) and len(experts) == 2
    if not fits or not all(each.fits() for each in experts):
        return None
    x = x if x.stride(-1) == 1 else x.contiguous()
    with on(x.device):
        return packed_forward(x, experts[0], experts[1], ids.contiguous(), weights.contiguous(), activation)


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the mixture and its routing, and those of packed experts that are registered, for models of a dtype that the kernels take."""
    global _differentiable
    if dtype not in TYPES:
        return {}
    if phase == "train":
        # A compiler would take it apart, and is to go around it. Saying so imports the compiler, for which no server should wait.
        _differentiable = torch.compiler.disable(_with_gradients)
    found = registered()
    makers = {"int8_moe": _int8_moe, "int4_moe": _int4_moe, "fp8_moe": _fp8_moe, "nf4_moe": _nf4_moe}
    makers["nf4_grouped"] = nf4_grouped
    own: dict[str, Callable[..., Any]] = {"moe": moe, "moe_route": moe_route}
    return own | {name: make(found[name].function) for name, make in makers.items() if name in found}
