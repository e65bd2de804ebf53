"""Work over the vocabulary, of which a tensor-parallel rank may have a part: each rank keeps its columns of the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pegboard.nn.parallel import summed


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the logits are here: all without a group, else `size` of them from `start` on. No function has a gradient."""

    group: Any = None
    start: int = 0
    size: int = 0

    def logsumexp(self, logits: Tensor) -> Tensor:
        """[M, columns here] -> [M, 1], over all columns."""
        own = logits.logsumexp(-1, keepdim=True)
        if self.group is None:
            return own
        top = own.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=self.group)
        return top + summed((own - top).exp(), self.group).log()

    def pick(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the logit of each row at the id `wanted` [M, 1], as [M, 1]."""
        if self.group is None:
            return logits.gather(1, wanted)
        column, here = self._own(wanted)
        return summed(torch.where(here, logits.gather(1, column), 0.0), self.group)

    def add(self, grad: Tensor, wanted: Tensor, value: float) -> Tensor:
        """Add a value to each row of `grad` at the id `wanted` [M, 1], where its column is here; in place."""
        if self.group is None:
            return grad.scatter_add_(1, wanted, grad.new_full((), value).expand(wanted.shape[0], 1))
        column, here = self._own(wanted)
        return grad.scatter_add_(1, column, here.to(grad.dtype) * value)

    def total(self, d_hidden: Tensor) -> Tensor:
        """Return the sum over the ranks of what their columns say about the states, [M, H]."""
        return d_hidden if self.group is None else summed(d_hidden, self.group)

    def _own(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the column of each id, of any where it is not here, and whether it is."""
        column = wanted - self.start
        here = (column >= 0) & (column < self.size)
        return torch.where(here, column, 0), here
