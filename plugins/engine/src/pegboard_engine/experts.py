"""Which experts of a mixture the tokens of a served model use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pegboard.nn.moe import mixtures


class ExpertCounts:
    """Follows the routers of a model (`pegboard.nn.moe.RouterWatch`); counts on the device, captured steps included.

    Rows that pad a captured step to its size count too. A model without experts has no counts.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = mixtures(model)
        experts = max((layer.experts.count for layer in layers), default=0)
        device = layers[0].gate.weight.device if layers else None
        self._counts = torch.zeros(len(layers), experts, dtype=torch.int64, device=device)
        self._rows = list(self._counts)
        for layer in layers:
            layer.watch = self

    def weigh(self, layer: int, logits: Tensor, *, share: float) -> Tensor:
        """Return the logits as they are."""
        return logits

    def count(self, layer: int, ids: Tensor) -> None:
        """Count the rows of each expert; ids [T, k]."""
        flat = ids.reshape(-1).long()
        self._rows[layer].scatter_add_(0, flat, torch.ones_like(flat))

    def read(self) -> list[list[int]]:
        """Return the counts so far, by layer and expert. Waits for the device."""
        found: list[list[int]] = self._counts.tolist()
        return found
