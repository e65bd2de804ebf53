"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum, made orthogonal, as the update of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from pegboard.errors import ConfigError
from pegboard.ops import KernelTable
from pegboard_muon.options import MuonOptions
from pegboard_trainer.adamw import AdamW, AdamWFactory, mix
from pegboard_trainer.adamw_op import round_at_random

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration drives singular values between 0 and 1 to about 0.7 to 1.2, steepest at 0."""

_OUTER = ("embed_tokens.", "lm_head.", "score.")


class MuonFactory(AdamWFactory):
    """Builds Muon over the matrices of the layers, AdamW over embedding, head, norms and biases."""

    def __init__(self, options: MuonOptions) -> None:
        super().__init__(options.plain())
        self._own = options

    def build(self, parameters: Sequence[tuple[str, Parameter]]) -> Optimizer:
        """Return the optimizer. Raises ConfigError for matrices of which only a part is here."""
        for name, parameter in parameters:
            if _is_hidden(name, parameter) and isinstance(parameter, DTensor):
                raise ConfigError(
                    f"muon makes whole matrices orthogonal, and only a part of {name} is here",
                    fix="use mesh.replicate, or optimizer.use=adamw",
                )
        hidden = [p for name, p in parameters if _is_hidden(name, p)]
        others = [(name, p) for name, p in parameters if not _is_hidden(name, p)]
        matrices = [p for _, p in others if p.dim() >= 2]
        vectors = [p for _, p in others if p.dim() < 2]
        decay = self._own.weight_decay
        groups = [
            {"params": hidden, "weight_decay": decay, "orthogonal": True},
            {"params": matrices, "weight_decay": decay, "orthogonal": False},
            {"params": vectors, "weight_decay": 0.0, "orthogonal": False},
        ]
        return self.make([group for group in groups if group["params"]])

    def make(self, groups: list[dict[str, Any]]) -> Muon:
        """Return the optimizer of the groups."""
        return Muon(groups, self._own, self.kernels)

    def options(self) -> dict[str, Any]:
        """Return the options for people to read."""
        return self._own.model_dump()


class Muon(AdamW):
    """State of a matrix of the layers: `momentum`, float32; and `master`, where its weights have 16 bits and `rounding` says so."""

    def __init__(self, groups: list[dict[str, Any]], options: MuonOptions, kernels: KernelTable | None = None) -> None:
        super().__init__(groups, options.plain(), kernels)
        self._momentum, self._nesterov, self._iterations = options.momentum, options.nesterov, options.iterations

    def _update(self, group: dict[str, Any], parameters: list[Parameter]) -> None:
        if not group["orthogonal"]:
            super()._update(group, parameters)
            return
        for parameter in parameters:
            assert parameter.grad is not None
            state = self._matrix_state(parameter)
            wide = state.get("master", parameter.data.to(state["momentum"]))
            gradient, momentum = parameter.grad.to(wide), state["momentum"]
            if self.factor is not None:
                gradient = gradient * self.factor.to(gradient)
            momentum.lerp_(gradient, 1 - self._momentum)
            ahead = gradient.lerp(momentum, self._momentum) if self._nesterov else momentum
            # As long as AdamW's updates usually are, whatever the matrix's shape (arXiv:2502.16982, section 2.2).
            length = 0.2 * max(parameter.shape) ** 0.5
            wide.mul_(1 - group["lr"] * group["weight_decay"])
            wide.add_(orthogonal(ahead, self._iterations), alpha=-group["lr"] * length)
            if self._rounding == "stochastic" and parameter.dtype == torch.bfloat16:
                round_at_random(parameter.data, wide, mix(self._seed, group["updates"], self._places[parameter]))
            elif wide is not parameter.data:
                parameter.data.copy_(wide)

    def _matrix_state(self, parameter: Parameter) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if "momentum" not in state:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            held = self.state_device or parameter.device
            state["momentum"] = torch.zeros(parameter.shape, dtype=dtype, device=held)
            if held != parameter.device or (dtype != parameter.dtype and self._rounding == "master"):
                state["master"] = parameter.detach().to(held, dtype, copy=True)
        return state


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """[N, K] -> [N, K]: nearly U V^T of the singular value decomposition, by Newton-Schulz iterations on the smaller side.

    In bfloat16 on accelerators, which is as good here, and float32 on the host, where that is fast.
    """
    narrow = torch.bfloat16 if matrix.device.type != "cpu" else matrix.dtype
    x = matrix.to(narrow)
    tall = x.shape[0] > x.shape[1]
    x = x.t() if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        squared = x @ x.t()
        x = a * x + (b * squared + c * squared @ squared) @ x
    return (x.t() if tall else x).to(matrix.dtype)


def _is_hidden(name: str, parameter: Parameter) -> bool:
    return parameter.dim() == 2 and not any(part in f"{name}." for part in _OUTER)
