from __future__ import annotations

import torch
from torch import Tensor, nn

from pegboard.nn.embedding import Embedding
from pegboard.nn.layer import Layer


class Head(Layer):
    """Hidden states to logits. A tied head has no parameter of its own: it reads the embedding's.

    softcap: logits become softcap * tanh(logits / softcap); None for none.
    """

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
        """The weight [V, H], wherever it is owned."""
        return self.weight if self._tied is None else self._tied[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, H] -> [M, V]."""
        return capped(self.kernels.linear(hidden, self.matrix, None), self.softcap)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return logits that stay between -softcap and softcap; as they are where that is None."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def cap_slope(logits: Tensor, softcap: float) -> Tensor:
    """Return the derivative of capped logits by what they were made from, for losses that write their own backward pass."""
    return 1 - (logits / softcap).square()
