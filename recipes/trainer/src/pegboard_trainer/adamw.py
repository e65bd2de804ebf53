"""AdamW that keeps small updates of 16-bit weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from pegboard.interfaces.optimizer import OptimizerFactory
from pegboard_trainer.options import AdamWOptions

FUSED = ("cpu", "cuda", "xpu", "mps")
_WORD = 2**64 - 1


class AdamWFactory(OptimizerFactory):
    """Builds AdamW over two groups: matrices, which decay, and vectors, which do not."""

    def __init__(self, options: AdamWOptions) -> None:
        self._options = options

    def build(self, parameters: Sequence[tuple[str, Parameter]]) -> Optimizer:
        """Return the optimizer; parameters of 16 bits are updated as `rounding` says."""
        options = self._options
        matrices = [p for _, p in parameters if p.dim() >= 2]
        vectors = [p for _, p in parameters if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return AdamW([g for g in groups if g["params"]], options)

    def options(self) -> dict[str, Any]:
        """Return the options for people to read."""
        return self._options.model_dump()


class AdamW(Optimizer):
    """AdamW through torch's fused update where the device has one. Moments are float32 (float64 for float64 weights)."""

    def __init__(self, groups: list[dict[str, Any]], options: AdamWOptions) -> None:
        super().__init__(groups, {"lr": options.lr, "betas": tuple(options.betas), "eps": options.eps, "updates": 0})
        self._rounding = options.rounding
        self._seed = options.seed
        self._places = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. Gradients stay as they are."""
        for group in self.param_groups:
            group["updates"] += 1
            for device in {p.device for p in group["params"]}:
                self._update(group, [p for p in group["params"] if p.grad is not None and p.device == device], device)

    def _update(self, group: dict[str, Any], parameters: list[Parameter], device: torch.device) -> None:
        if not parameters:
            return
        states = [self._state(p) for p in parameters]
        # The moments are wide; so must be the weights and gradients beside them in one fused call.
        wide: list[Tensor] = [
            s["master"]
            if "master" in s
            else (p.data if p.dtype == s["exp_avg"].dtype else p.data.to(s["exp_avg"].dtype))
            for p, s in zip(parameters, states, strict=True)
        ]
        # The fused kernel reads gradients as they lie in memory.
        gradients = [
            p.grad.to(w.dtype).contiguous() for p, w in zip(parameters, wide, strict=True) if p.grad is not None
        ]
        fused = device.type in FUSED
        adamw(
            wide,
            gradients,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for parameter, value in zip(parameters, wide, strict=True):
            if value.data_ptr() == parameter.data_ptr():
                continue
            if self._rounding == "stochastic" and parameter.dtype == torch.bfloat16:
                # Seeded by step and place, so that a resumed run draws the same numbers without a generator being stored.
                _round_stochastically(parameter, value, mix(self._seed, group["updates"], self._places[parameter]))
            else:
                parameter.copy_(value)

    def _state(self, parameter: Parameter) -> dict[str, Any]:
        """Return the state of a parameter, made when it is first updated."""
        state: dict[str, Any] = self.state[parameter]
        if "exp_avg" not in state:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            if dtype != parameter.dtype and self._rounding == "master":
                state["master"] = parameter.detach().to(dtype, copy=True)
        return state


def mix(*values: int) -> int:
    """Return 63 bits in which every bit of every value counts (the finaliser of SplitMix64, value after value)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return state >> 1


def _round_stochastically(target: Tensor, value: Tensor, seed: int) -> None:
    """Write float32 `value` into bfloat16 `target`, up or down with the probability that makes the mean exact.

    A bfloat16 is the upper half of a float32: adding a uniform 16-bit number to the bits and cutting the lower half does it.
    """
    generator = torch.Generator(device=value.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    bits = value.contiguous().view(torch.int32)
    rounded = (bits + noise).bitwise_and_(-65536).view(torch.float32)
    target.copy_(torch.where(torch.isfinite(value), rounded, value))
