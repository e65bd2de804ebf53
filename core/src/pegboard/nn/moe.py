"""A mixture of experts in the place of an MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from pegboard.nn.experts import Experts
from pegboard.nn.layer import Layer
from pegboard.nn.linear import Linear
from pegboard.nn.mlp import GatedMLP

if TYPE_CHECKING:
    from pegboard.types import ForwardContext


class RouterWatch(Protocol):
    """Who follows what the routers of a model do: a loss over their choices, or a statistic."""

    def weigh(self, layer: int, logits: Tensor, *, share: float) -> Tensor:
        """Return the logits [T, E] of the `layer`th router as they are, with a loss's gradient in theirs if there is one.

        share: of that gradient, where the ranks of a region each compute the same and sum it.
        """

    def count(self, layer: int, ids: Tensor) -> None:
        """Hear which experts the rows use, [T, k]."""


class Router(Layer):
    """The logits of the experts, x @ weight.T. No `Linear`: adapters and quantizers leave it as it is: it chooses."""

    def __init__(self, hidden_size: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, E]."""
        out: Tensor = self.kernels.linear(x, self.weight, None)
        return out


class MoE(Layer):
    """The sum over a row's `k` likeliest experts of weight * expert(x) (arXiv:1701.06538, 2401.04088), and of a shared expert.

    experts: their sizes. renormalise: the weights of the k sum to 1. shared: inner size of an expert that every row uses, times a
    gate of its own, sigmoid(x · g) (arXiv:2401.06066, section 3.2, with a gate); None for no such.
    index: which of the model's mixtures this is. watch: who follows its router; None for nobody.
    """

    encloses = True  # of a tensor-parallel region: what is split in here is entered and left once, here
    watch: RouterWatch | None = None

    def __init__(
        self,
        hidden_size: int,
        experts: Experts,
        k: int,
        *,
        renormalise: bool,
        shared: int | None = None,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.k, self.renormalise, self.index = k, renormalise, index
        self.gate = Router(hidden_size, experts.count)
        self.experts = experts
        self.shared_expert = None if shared is None else GatedMLP(hidden_size, shared)
        self.shared_expert_gate = None if shared is None else Linear(hidden_size, 1)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, H] -> [T, H]; of each rank's rows where the sequence is split."""
        if self.region is not None:
            x = self.region.enter(x, ctx.positions.shape[-1])
        logits = self.gate(x)
        if self.watch is not None:
            share = 1.0 if self.region is None else 1 / self.region.world
            logits = self.watch.weigh(self.index, logits, share=share)
        ids, weights = self.kernels.moe_route(logits, self.k, self.renormalise)
        if self.watch is not None:
            self.watch.count(self.index, ids)
        out: Tensor = self.experts(x, ids, weights, ctx)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            out = out + self.shared_expert_gate(x, ctx).sigmoid() * self.shared_expert(x, ctx)
        return out if self.region is None else self.region.leave(out)

    def extra_repr(self) -> str:
        return f"{self.k} of {self.experts.count} experts, renormalise={self.renormalise}"


def mixtures(model: nn.Module) -> list[MoE]:
    """Return the mixtures of a model, in order."""
    return [module for module in model.modules() if isinstance(module, MoE)]
