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
from pegboard_trainer.config import TrainConfig
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
    """Takes each parameter's step inside the backward pass (arXiv:2306.09782), of which a step has one, in one process, unclipped."""

    def __init__(self, parameters: Sequence[tuple[str, Parameter]], optimizer: PerParameter) -> None:
        super().__init__(parameters, optimizer, None)  # type: ignore[arg-type]
        self._squares: list[Tensor] = []
        for parameter, own in optimizer.optimizers.items():
            parameter.register_post_accumulate_grad_hook(self._hook(own))

    def _hook(self, optimizer: Optimizer) -> Callable[[Tensor], None]:
        def update(parameter: Tensor) -> None:
            assert parameter.grad is not None
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self._squares.append(torch.linalg.vector_norm(parameter.grad, dtype=wide))
            optimizer.step()
            parameter.grad = None

        return update

    def finish(self) -> Tensor:
        """Return the norm of the gradient that the backward pass had."""
        norm = torch.linalg.vector_norm(torch.stack(self._squares)) if self._squares else torch.tensor(0.0)
        self._squares = []
        return norm


def check_in_backward(config: TrainConfig) -> None:
    """Raise ConfigError for what needs all gradients together."""
    wrong = {
        "batch.accumulate": config.batch.accumulate > 1,
        "clip": config.clip is not None,
        "mesh": config.mesh.processes > 1,
    }
    for key, is_set in wrong.items():
        if is_set:
            raise ConfigError(
                f"memory.update_in_backward updates weights before all gradients are there, which {key} needs",
                fix="set batch.accumulate=1, clip=null and a mesh of one process, or memory.update_in_backward=false",
            )
