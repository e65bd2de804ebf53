"""A moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from pegboard_trainer.callbacks import Callback
from pegboard_trainer.checkpoint import host_copy
from pegboard_trainer.placement import Placement


class Averages(Callback):
    """average <- decay · average + (1 - decay) · weight after each step, in at least float32; decay grows as (1 + n) / (10 + n).

    named: the trained parameters. host: keep the averages on the host.
    """

    def __init__(self, named: Sequence[tuple[str, Parameter]], decay: float, *, host: bool = False) -> None:
        self._named, self._decay, self.steps = named, decay, 0
        self.values: dict[str, Tensor] = {}
        for name, parameter in named:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self.values[name] = (host_copy(parameter) if host else parameter.detach().clone()).to(wide)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take in the weights of now."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in self._named:
            average = Placement.local(self.values[name])
            now = Placement.local(parameter).to(device=average.device, dtype=average.dtype)
            average.lerp_(now, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Return a context in which the averages are the model's weights."""
        held = {name: Placement.local(p.detach()).clone() for name, p in self._named}
        self._put({name: Placement.local(value) for name, value in self.values.items()})
        try:
            yield
        finally:
            self._put(held)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._named:
            Placement.local(parameter).copy_(values[name])

    def of(self, prefix: str, others: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return the averages of the role whose parameters have this prefix, by the model's own names.

        others: prefixes of what is no parameter of that role.
        """
        names = [n for n in self.values if n.startswith(prefix) and not n.startswith(tuple(others) or ("\0",))]
        return {name[len(prefix) :]: self.values[name] for name in names}
