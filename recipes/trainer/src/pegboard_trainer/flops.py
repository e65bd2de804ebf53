"""How much a training step computes, and how much its device can: the two sides of model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pegboard.nn import Attention, CausalLM
from pegboard.nn.moe import mixtures


@dataclass(frozen=True, slots=True)
class StepCost:
    """Floating-point operations of forward and backward, a multiplication and an addition counted as two.

    Only matrix products count, and what is computed again (activation checkpointing) counts once, as in PaLM's appendix B
    (arXiv:2204.02311); attention counts the causal half alone. matrices, trained: weights of linear layers, and those of
    them that get a gradient. head, head_trained: the same for the output head, which is computed where a target stands.
    attention: (heads x head_dim, window) of each layer.
    """

    matrices: int
    trained: int
    head: int
    head_trained: int
    attention: tuple[tuple[int, int | None], ...]

    @classmethod
    def of(cls, model: CausalLM) -> StepCost:
        """Count a model's layers, or their parts that are here. An adapter's matrices count beside those of the layer that they adapt.

        Of the experts of a mixture those count that a token uses.
        """
        matrices = trained = 0.0
        attention = []
        used = {
            id(module): layer.k / layer.experts.count for layer in mixtures(model) for module in layer.experts.modules()
        }
        for module in model.modules():
            if isinstance(module, Attention):
                attention.append((module.spec.num_heads * module.spec.head_dim, module.spec.window))
            if not hasattr(module, "in_features"):
                continue
            part = used.get(id(module), 1.0)
            if hasattr(module, "base"):
                own = [p for p in module.parameters(recurse=False) if p.dim() == 2]
                matrices += part * sum(p.numel() for p in own)
                trained += part * sum(p.numel() for p in own if p.requires_grad)
                continue
            shape: tuple[Any, Any] = (module.in_features, module.out_features)
            size = int(shape[0]) * int(shape[1])
            weight = getattr(module, "weight", None)
            matrices += part * size
            trained += part * size if isinstance(weight, nn.Parameter) and weight.requires_grad else 0
        head = model.head.part
        size = int(head.shape[0]) * int(head.shape[1])
        return cls(round(matrices), round(trained), size, size if head.requires_grad else 0, tuple(attention))

    def flops(self, seq_lens: Sequence[int], targets: int) -> float:
        """Return the operations of one batch, forward and backward: sequences of these lengths, `targets` rows through the head.

        Backward computes gradients of all inputs, and those of the weights that are trained.
        """
        tokens = sum(seq_lens)
        linear = tokens * (4 * self.matrices + 2 * self.trained) + targets * (4 * self.head + 2 * self.head_trained)
        # Two products forward, four backward, each of 2 operations for every pair of a query and a key that it sees.
        pairs = {window: sum(_pairs(length, window) for length in seq_lens) for _, window in self.attention}
        return float(linear + sum(12 * width * pairs[window] for width, window in self.attention))


def _pairs(length: int, window: int | None) -> int:
    """Return the pairs of a query and a key that causal attention looks at, within `window` keys."""
    seen = min(length, window or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def measured_flops(device: torch.device, dtype: torch.dtype, budget: float = 0.05) -> float:
    """Return operations a second that square matrix products reach on a device, the best of growing sizes.

    What a model could use at most, without a table of devices. budget: seconds after which no larger size is tried.
    """
    best, size = 0.0, 256
    while size <= 8192:
        a = torch.ones(size, size, dtype=dtype, device=device)
        seconds = [_product_seconds(a) for _ in range(3)]
        best = max(best, 2 * size**3 / min(seconds))
        if min(seconds) > budget / 8:
            break
        size *= 2
    return best


def _product_seconds(a: torch.Tensor) -> float:
    _wait(a)
    began = time.perf_counter()
    out = a @ a
    _wait(out)
    return time.perf_counter() - began


def _wait(tensor: torch.Tensor) -> None:
    tensor[0, 0].item()
