from __future__ import annotations

import torch
from torch import Tensor, nn

from pegboard.nn.layer import Layer


class Embedding(Layer):
    """Token ids to vectors. first: the id of the first row, where the vocabulary is split over a region."""

    first = 0

    def __init__(self, num_embeddings: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, size))

    def forward(self, ids: Tensor) -> Tensor:
        """[T] int64 -> [T, size]; the rows of this rank where the sequence is split."""
        if self.region is not None:
            return self.region.leave(self._part(ids))
        out: Tensor = self.kernels.embedding(ids, self.weight)
        return out

    def _part(self, ids: Tensor) -> Tensor:
        """Return the vectors of the ids whose rows are here, and zeros for others."""
        rows = ids - self.first
        here = (rows >= 0) & (rows < self.weight.shape[0])
        found: Tensor = self.kernels.embedding(torch.where(here, rows, 0), self.weight)
        return found * here[:, None].to(found.dtype)
