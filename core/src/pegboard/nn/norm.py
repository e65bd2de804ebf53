from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pegboard.nn.layer import Layer


class RMSNorm(Layer):
    """x / rms(x) * weight over the last dimension (arXiv:1910.07467).

    offset: added to the weight.
    """

    offset: ClassVar[float] = 0.0

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        out: Tensor = self.kernels.rms_norm(x, self.weight, self.eps)
        return out

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return (norm(x + residual), x + residual), each [T, size]."""
        out: tuple[Tensor, Tensor] = self.kernels.add_rms_norm(x, residual, self.weight, self.eps)
        return out


class OffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight): a weight of zero changes nothing."""

    offset = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        out: Tensor = self.kernels.offset_rms_norm(x, self.weight, self.eps)
        return out

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return (norm(x + residual), x + residual), each [T, size]."""
        total = x + residual
        return self(total), total
