"""Updating each parameter as soon as its gradient is there, so that gradients never exist together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from pegboard.errors import ConfigError
from pegboard.interfaces.optimizer import OptimizerFactory
from pegboard_trainer.buckets import Buckets
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.placement import Placement
from pegboard_trainer.update import Update


class _States(Mapping[Any, dict[str, Any]]):
    """The states of many optimizers as those of one."""

    def __init__(self, optimizers: Mapping[Parameter, Optimizer]) -> None:
        self._optimizers = optimizers

    def __getitem__(self, parameter: Parameter) -> dict[str, Any]:
        state: dict[str, Any] = self._optimizers[parameter].state[parameter]
        return state

    def __iter__(self) -> Iterator[Any]:
        return iter(self._optimizers)

    def __len__(self) -> int:
        return len(self._optimizers)


class PerParameter:
    """An optimizer for each parameter, which looks like one of them all to whoever saves and restores it."""

    def __init__(self, factory: OptimizerFactory, named: Sequence[tuple[str, Parameter]]) -> None:
        self.optimizers = {parameter: factory.build([(name, parameter)]) for name, parameter in named}
        self.state = _States(self.optimizers)
        self.param_groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    @property
    def local_states(self) -> bool:
        """As that of the optimizers."""
        return all(getattr(optimizer, "local_states", False) for optimizer in self.optimizers.values())


class UpdateInBackward(Update):
    """Takes each parameter's step inside the backward pass (arXiv:2306.09782), of which a step has one, unclipped.

    Of what several processes have whole, gradients are summed bucket by bucket, and a bucket's parameters step when it is back.
    """

    def __init__(
        self, parameters: Sequence[tuple[str, Parameter]], optimizer: PerParameter, placement: Placement
    ) -> None:
        super().__init__(parameters, optimizer, None, placement)  # type: ignore[arg-type]
        self._optimizers, self._squares = optimizer.optimizers, list[Tensor]()
        for name, parameter in parameters:
            if placement.group_of(name, parameter) is None:
                parameter.register_post_accumulate_grad_hook(self._hook(name, parameter))

    def _sums(self) -> Buckets:
        return Buckets(self.parameters, self.placement, update=self._step)

    def _hook(self, name: str, parameter: Parameter) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def came(_: Tensor) -> None:
            self.placement.reduce_parts([(name, parameter)])
            self._step(name, parameter)

        return came

    def _step(self, name: str, parameter: Parameter) -> None:
        self._squares.append(self.placement.square(name, parameter))
        self._optimizers[parameter].step()
        parameter.grad = None

    def finish(self) -> Tensor:
        """Return the norm of the gradient that the backward pass had."""
        self._buckets.finish()
        norm = self.placement.root(self._squares)
        self._squares = []
        return norm


def check_in_backward(config: TrainConfig) -> None:
    """Raise ConfigError for what needs all gradients together."""
    wrong = {
        "batch.accumulate": config.batch.accumulate > 1,
        "clip": config.clip is not None,
        "mesh.offload": config.mesh.offload,
    }
    for key, is_set in wrong.items():
        if is_set:
            raise ConfigError(
                f"memory.update_in_backward updates weights before all gradients are there, which {key} needs",
                fix="set batch.accumulate=1, clip=null and mesh.offload=false, or memory.update_in_backward=false",
            )
