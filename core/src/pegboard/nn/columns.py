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

    def own(self, targets: Tensor) -> Tensor:
        """Return ids [M] as columns of the logits here; those that are elsewhere are outside of their range."""
        return targets if self.group is None else targets - self.start

    def joined(self, norm: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Return what op `logits_sums` gives of the columns here, each [M], over all columns."""
        if self.group is None:
            return norm, picked
        top = norm.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=self.group)
        parts = summed(torch.stack(((norm - top).exp(), picked)), self.group)
        return top + parts[0].log(), parts[1]

    def total(self, d_hidden: Tensor) -> Tensor:
        """Return the sum over the ranks of what their columns say about the states, [M, H]."""
        return d_hidden if self.group is None else summed(d_hidden, self.group)
