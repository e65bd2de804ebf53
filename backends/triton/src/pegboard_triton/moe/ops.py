"""Op `moe` by these kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.nn import grouped as reference
from pegboard_triton.moe.forward import forward
from pegboard_triton.moe.training import Mixture
from pegboard_triton.operators import TYPES, differentiates, operator, takes

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase


def _fake(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape)


@operator("moe(Tensor x, Tensor gate_up, Tensor down, Tensor ids, Tensor weights, str activation) -> Tensor", _fake)
def _moe(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor:
    return forward(x, gate_up, down, ids.contiguous(), weights.contiguous(), activation)


def moe(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, activation: str = "silu") -> Tensor:
    """[T, H] -> [T, H]: op `moe`. A pair whose id is no expert adds nothing."""
    if not (
        takes(x, gate_up, down) and activation in reference.GATED and gate_up.is_contiguous() and down.is_contiguous()
    ):
        return reference.moe(x, gate_up, down, ids, weights, activation)
    if differentiates(x, gate_up, down, weights):
        out: Tensor = Mixture.apply(x, gate_up, down, ids, weights, activation)  # type: ignore[no-untyped-call]
        return out
    x = x if x.stride(-1) == 1 else x.contiguous()
    result: Tensor = _moe(x, gate_up, down, ids, weights, activation)
    return result


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the mixture, for models of a dtype that the kernels take."""
    return {"moe": moe} if dtype in TYPES else {}
