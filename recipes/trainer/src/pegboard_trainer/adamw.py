"""AdamW that keeps small updates of 16-bit weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from pegboard.interfaces.optimizer import OptimizerFactory
from pegboard.ops import KernelTable, kernel_table
from pegboard_trainer.adamw_op import AdamWStep
from pegboard_trainer.options import AdamWOptions

TOGETHER = 1 << 23
"""Numbers that one call updates: enough that its start does not show, few enough that copies in float32 do not either."""

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
        return self.make([g for g in groups if g["params"]])

    def make(self, groups: list[dict[str, Any]]) -> AdamW:
        """Return the optimizer of the groups."""
        return AdamW(groups, self._options, self.kernels)

    def options(self) -> dict[str, Any]:
        """Return the options for people to read."""
        return self._options.model_dump()


class AdamW(Optimizer):
    """AdamW through op `adamw_`, on the part of each parameter that is here.

    Moments are float32 (float64 for float64 weights), or bfloat16 if the options say so; those are rounded at random in proportion,
    since the second moment changes by less than a bfloat16 can hold.

    kernels: the ops of the platform that the parameters are on. factor: a scalar tensor that gradients count by; None for 1. Set before
    a step, which forgets it. State of a parameter: `step`, `exp_avg`, `exp_avg_sq` and, where it is kept, `master`.
    """

    local_states = True
    factor: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], options: AdamWOptions, kernels: KernelTable | None = None) -> None:
        super().__init__(groups, {"lr": options.lr, "betas": tuple(options.betas), "eps": options.eps, "updates": 0})
        self._rounding = options.rounding
        self._narrow = options.states == "bfloat16"
        self.state_device = torch.device("cpu") if options.offload else None
        self._seed = options.seed
        self._places = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        self._kernels = kernels or kernel_table()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. Gradients stay as they are."""
        for group in self.param_groups:
            group["updates"] += 1
            for device in {p.device for p in group["params"]}:
                ready = [p for p in group["params"] if p.grad is not None and p.device == device]
                for some in _parts(ready):
                    self._update(group, some)
        self.factor = None

    def _update(self, group: dict[str, Any], parameters: list[Parameter]) -> None:
        states = [self._state(p) for p in parameters]
        held = [_local(p.data) for p in parameters]
        # States on the host are updated there, and their masters with them; the weights are copies of those.
        away = self.state_device is not None
        weights = [s["master"] if away and "master" in s else h for h, s in zip(held, states, strict=True)]
        masters = [None if away else s.get("master") for s in states]
        gradients = [
            _local(p.grad).to(w.device).contiguous()
            for p, w in zip(parameters, weights, strict=True)
            if p.grad is not None
        ]
        first, second = ([self._moment(s, key) for s in states] for key in ("exp_avg", "exp_avg_sq"))
        for state in states:
            state["step"] += 1
        # Seeded by step and place, so that a resumed run draws the same numbers without a generator being stored.
        seeds = [mix(self._seed, group["updates"], self._places[p]) for p in parameters]
        beta1, beta2 = group["betas"]
        at_random = self._rounding == "stochastic"
        how = AdamWStep(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], at_random)
        steps = [s["step"] for s in states]
        self._kernels.adamw_(weights, gradients, first, second, masters, steps, seeds, how, self.factor)
        for index, state in enumerate(states):
            if weights[index] is not held[index]:
                held[index].copy_(weights[index])
            self._put(state, "exp_avg", first[index])
            self._put(state, "exp_avg_sq", second[index])

    def _moment(self, state: dict[str, Any], key: str) -> Tensor:
        """Return a moment to be updated in place."""
        moment: Tensor = state[key]
        return moment

    def _put(self, state: dict[str, Any], key: str, value: Tensor) -> None:
        """Keep a moment that was updated; it may be kept otherwise than `_moment` gave it."""

    def _state(self, parameter: Parameter) -> dict[str, Any]:
        """Return the state of a parameter, made when it is first updated."""
        state: dict[str, Any] = self.state[parameter]
        if "exp_avg" not in state:
            here = _local(parameter.detach())
            # States on the host come with the weights that are updated there.
            held = here if self.state_device is None else here.to(self.state_device)
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            state["step"] = 0
            state |= self._zeros(held, dtype)
            if held.device != here.device or (dtype != parameter.dtype and self._rounding == "master"):
                state["master"] = held.to(dtype, copy=True)
        return state

    def _zeros(self, held: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return both moments of a parameter as they begin. dtype: what updates are computed in."""
        kept = torch.bfloat16 if self._narrow else dtype
        first = torch.zeros_like(held, dtype=kept, memory_format=torch.contiguous_format)
        return {"exp_avg": first, "exp_avg_sq": torch.zeros_like(first)}


def _parts(parameters: Sequence[Parameter]) -> Iterator[list[Parameter]]:
    """Yield the parameters in order, together as long as they are small."""
    part: list[Parameter] = []
    count = 0
    for parameter in parameters:
        size = _local(parameter).numel()
        if part and count + size > TOGETHER:
            yield part
            part, count = [], 0
        part.append(parameter)
        count += size
    if part:
        yield part


def _local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is here, in the same memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def mix(*values: int) -> int:
    """Return 63 bits in which every bit of every value counts (the finaliser of SplitMix64, value after value)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return state >> 1
