from __future__ import annotations

import torch
from torch import Tensor, nn

from pegboard.nn.columns import Columns
from pegboard.nn.embedding import Embedding
from pegboard.nn.layer import Layer
from pegboard.nn.logits import capped
from pegboard.nn.parallel import span


class Head(Layer):
    """Hidden states to logits. A tied head has no parameter of its own: it reads the embedding's.

    softcap: logits become softcap * tanh(logits / softcap); None for none.
    rows: of the whole matrix, where the vocabulary is split over a region; the losses of `pegboard.nn.loss` leave it so.
    """

    rows = 0

    def __init__(
        self, size: int, vocab_size: int, tied: Embedding | None = None, *, softcap: float | None = None
    ) -> None:
        super().__init__()
        self.softcap = softcap
        # A plain tuple hides the embedding from nn.Module: its weight must appear once, under the embedding's name.
        self._tied = None if tied is None else (tied,)
        if tied is None:
            self.weight = nn.Parameter(torch.empty(vocab_size, size))

    @property
    def matrix(self) -> Tensor:
        """The weight [V, H], wherever it is owned. A split one is gathered: every rank computes the same with it."""
        return self.part if self.region is None else self.region.whole(self.part, self.rows)

    @property
    def part(self) -> Tensor:
        """The rows of the weight that are here; all of them where the vocabulary is not split."""
        return self.weight if self._tied is None else self._tied[0].weight

    @property
    def columns(self) -> Columns:
        """Which columns of the logits `part` gives."""
        if self.region is None:
            return Columns()
        return Columns(self.region.group, *span(self.rows, self.region.rank, self.region.world))

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, H] -> [M, V]."""
        return capped(self.kernels.linear(hidden, self.matrix, None), self.softcap)
