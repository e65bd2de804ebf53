"""AdamW with moments in 8 bits (arXiv:2110.02861): codes of the dynamic data type, a scale for each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pegboard.blockwise import block_count, dynamic_table
from pegboard.ops import KernelTable
from pegboard_adam8bit.options import Adam8bitOptions
from pegboard_trainer.adamw import AdamW, AdamWFactory

_SIGNED = {"exp_avg": True, "exp_avg_sq": False}


class Adam8bitFactory(AdamWFactory):
    """Builds AdamW over two groups: matrices, which decay, and vectors, which do not."""

    def __init__(self, options: Adam8bitOptions) -> None:
        super().__init__(options.plain())
        self._own = options

    def make(self, groups: list[dict[str, Any]]) -> Adam8bit:
        """Return the optimizer of the groups."""
        return Adam8bit(groups, self._own, self.kernels)

    def options(self) -> dict[str, Any]:
        """Return the options for people to read."""
        return self._own.model_dump()


class Adam8bit(AdamW):
    """One parameter at a time is widened to float32, updated and rounded again; what an update computes with is never rounded.

    State of a parameter: `exp_avg` and `exp_avg_sq`, uint8 of its shape, and `…_scales`, float32, one for each block of it laid end to end.
    Rounding is to the nearest, so that a run is repeated and resumed exactly.
    """

    def __init__(
        self, groups: list[dict[str, Any]], options: Adam8bitOptions, kernels: KernelTable | None = None
    ) -> None:
        super().__init__(groups, options.plain(), kernels)
        self._block, self._smallest = options.block, options.smallest

    def _zeros(self, held: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        if held.numel() < self._smallest:
            return {key: torch.zeros_like(held, dtype=dtype, memory_format=torch.contiguous_format) for key in _SIGNED}
        made = {}
        for key, signed in _SIGNED.items():
            # The code of zero; the scales are zero, too.
            zero = int((dynamic_table(signed=signed).values == 0).nonzero())
            made[key] = torch.full(held.shape, zero, dtype=torch.uint8, device=held.device)
            made[f"{key}_scales"] = torch.zeros(block_count(held.numel(), self._block), device=held.device)
        return made

    def _moment(self, state: dict[str, Any], key: str) -> Tensor:
        if f"{key}_scales" not in state:
            return super()._moment(state, key)
        table = dynamic_table(signed=_SIGNED[key])
        flat = table.dequantise(state[key].view(-1), state[f"{key}_scales"], self._block)
        return flat.view(state[key].shape).float()

    def _put(self, state: dict[str, Any], key: str, value: Tensor) -> None:
        if f"{key}_scales" not in state:
            return
        codes, scales = dynamic_table(signed=_SIGNED[key]).quantise(value, self._block)
        if not _SIGNED[key]:
            # A second moment that became zero would let the next update divide by next to nothing: the smallest step is kept.
            codes.clamp_(min=1).mul_(value.reshape(-1) > 0)
        state[key].copy_(codes.view(value.shape))
        state[f"{key}_scales"].copy_(scales)
