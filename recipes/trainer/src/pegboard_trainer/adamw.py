"""AdamW that keeps small updates of 16-bit weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from pegboard.interfaces.optimizer import OptimizerFactory
from pegboard_trainer.options import AdamWOptions

FUSED = ("cpu", "cuda", "xpu", "mps")
TOGETHER = 1 << 23
"""Numbers that one fused call updates: enough that its start does not show, few enough that their float32 copies do not either."""

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
        return AdamW(groups, self._options)

    def options(self) -> dict[str, Any]:
        """Return the options for people to read."""
        return self._options.model_dump()


class AdamW(Optimizer):
    """AdamW through torch's fused update where the device has one, on the part of each parameter that is here.

    Moments are float32 (float64 for float64 weights), or bfloat16 if the options say so; those are rounded at random in proportion,
    since the second moment changes by less than a bfloat16 can hold.
    """

    local_states = True

    def __init__(self, groups: list[dict[str, Any]], options: AdamWOptions) -> None:
        super().__init__(groups, {"lr": options.lr, "betas": tuple(options.betas), "eps": options.eps, "updates": 0})
        self._rounding = options.rounding
        self._narrow = options.states == "bfloat16"
        self.state_device = torch.device("cpu") if options.offload else None
        self._seed = options.seed
        self._places = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. Gradients stay as they are."""
        for group in self.param_groups:
            group["updates"] += 1
            for device in {p.device for p in group["params"]}:
                ready = [p for p in group["params"] if p.grad is not None and p.device == device]
                # Gradients, and narrow moments, are widened for the update: some at a time, so that they never all are.
                for some in _parts(ready):
                    self._update(group, some, device)

    def _update(self, group: dict[str, Any], parameters: list[Parameter], device: torch.device) -> None:
        states = [self._state(p) for p in parameters]
        held = [_local(p.data) for p in parameters]
        # The moments are wide; so must be the weights and gradients beside them in one fused call.
        wide = [s.get("master", _widened(h)) for h, s in zip(held, states, strict=True)]
        # The fused kernel reads gradients as they lie in memory.
        gradients = [
            _local(p.grad).to(device=w.device, dtype=w.dtype).contiguous()
            for p, w in zip(parameters, wide, strict=True)
            if p.grad is not None
        ]
        moments = {
            key: [self._moment(s, key, w) for s, w in zip(states, wide, strict=True)]
            for key in ("exp_avg", "exp_avg_sq")
        }
        adamw(
            wide,
            gradients,
            moments["exp_avg"],
            moments["exp_avg_sq"],
            [],
            [s["step"] for s in states],
            foreach=False,
            fused=wide[0].device.type in FUSED,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for index, (parameter, state) in enumerate(zip(parameters, states, strict=True)):
            # Seeded by step and place, so that a resumed run draws the same numbers without a generator being stored.
            seed = mix(self._seed, group["updates"], self._places[parameter])
            self._keep(held[index], wide[index], seed, at_random=self._rounding == "stochastic")
            for number, key in enumerate(moments, 1):
                self._put(state, key, moments[key][index], mix(seed, number))

    def _moment(self, state: dict[str, Any], key: str, like: Tensor) -> Tensor:
        """Return a moment in the dtype and shape of `like`; itself where it is kept so."""
        return _widened(state[key])

    def _put(self, state: dict[str, Any], key: str, value: Tensor, seed: int) -> None:
        """Keep an updated moment."""
        self._keep(state[key], value, seed, at_random=True)

    @staticmethod
    def _keep(target: Tensor, value: Tensor, seed: int, *, at_random: bool) -> None:
        """Write an updated value where it belongs, unless it was updated there."""
        if value is target:
            return
        if at_random and target.dtype == torch.bfloat16:
            _round_stochastically(target, value, seed)
        else:
            target.copy_(value)

    def _state(self, parameter: Parameter) -> dict[str, Any]:
        """Return the state of a parameter, made when it is first updated."""
        state: dict[str, Any] = self.state[parameter]
        if "exp_avg" not in state:
            here = _local(parameter.detach())
            # States on the host come with the weights that are updated there.
            held = here if self.state_device is None else here.to(self.state_device)
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            state["step"] = torch.zeros((), dtype=torch.float32, device=held.device)
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


def _widened(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32; itself where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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
