from __future__ import annotations

import torch
from torch import Tensor, nn

from pegboard.nn.layer import Layer


class Embedding(Layer):
    """Token ids to vectors."""

    def __init__(self, num_embeddings: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, size))

    def forward(self, ids: Tensor) -> Tensor:
        """[T] int64 -> [T, size]."""
        out: Tensor = self.kernels.embedding(ids, self.weight)
        return out
