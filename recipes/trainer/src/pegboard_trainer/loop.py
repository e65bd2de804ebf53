"""The training loop. One screen: what a step does, in order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from pegboard.errors import DataError, PegboardError
from pegboard.interfaces.objective import Objective, Role
from pegboard.interfaces.schedule import Schedule
from pegboard.types import Batch
from pegboard_trainer.examples import Key
from pegboard_trainer.meter import Meter, Reducer
from pegboard_trainer.packer import Batches
from pegboard_trainer.run import Run


class NotFinite(PegboardError):
    """The loss or the gradient became infinite or not a number at `step`, on the examples `keys`."""

    def __init__(self, step: int, keys: Sequence[Key]) -> None:
        super().__init__(
            f"the gradient of step {step} is not finite", fix="lower optimizer.lr, or look at the rows of that step"
        )
        self.step, self.keys = step, list(keys)


@dataclass(slots=True)
class Trainer:
    """What one step needs. parameters: those that are trained."""

    objective: Objective
    roles: Mapping[str, Role]
    parameters: Sequence[Parameter]
    optimizer: Optimizer
    schedule: Schedule
    batches: Batches
    device: torch.device
    reducer: Reducer
    accumulate: int = 1
    clip: float | None = None

    def step(self, group: Sequence[Batch], factor: float, meter: Meter) -> Tensor:
        """Take one optimizer step over an accumulation group; return the gradient's norm, still on the device.

        The gradient is that of sum(losses) / sum(denominators), however the same examples are divided into batches.
        """
        group = [batch.to(self.device) for batch in group]
        total = self.reducer.sum(torch.stack([self.objective.denominator(batch) for batch in group]).sum())
        scale = torch.where(total > 0, 1 / total, 0.0)
        for batch in group:
            output = self.objective(self.roles, batch)
            (output.sum * scale.to(output.sum.dtype)).backward()
            meter.add({"loss": (output.sum, self.objective.denominator(batch)), **output.metrics})
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = param_group.setdefault("peak_lr", param_group["lr"]) * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def train(trainer: Trainer, run: Run) -> None:
    """Take the steps that are left. `run` says when to log, validate, save and stop. Raises NotFinite before bad weights are saved."""
    meter = Meter(trainer.device, trainer.reducer)
    norms: list[tuple[int, Tensor, list[Key]]] = []
    tokens, began = 0, time.perf_counter()
    for step in range(run.first_step, run.total_steps + 1):
        taken = [pair for _, pair in zip(range(trainer.accumulate), trainer.batches, strict=False)]
        if not taken:
            raise DataError(f"the data ended before step {step}", fix="leave the files alone while a run reads them")
        factor = trainer.schedule.factor(step - 1, run.total_steps)
        norm = trainer.step([batch for _, batch in taken], factor, meter)
        norms.append((step, norm, [key for keys, _ in taken for key in keys]))
        tokens += sum(sum(batch.seq_lens) for _, batch in taken)
        stopping = run.stop_requested()
        last = step == run.total_steps or stopping
        if run.logs(step) or run.validates(step) or run.saves(step) or last:
            check_finite(norms)
            elapsed = time.perf_counter() - began
            rate = {"tokens": float(tokens), "tokens_per_second": tokens / elapsed}
            lr = trainer.optimizer.param_groups[0]["lr"]
            run.log(step, {**meter.take(), "lr": lr, "grad_norm": float(norm), **rate})
            norms.clear()
            if (run.validates(step) or last) and not stopping:
                run.validate(step)
            if run.saves(step) or last:
                run.save(step)
            tokens, began = 0, time.perf_counter()
        if stopping:
            break


def check_finite(norms: Sequence[tuple[int, Tensor, list[Key]]]) -> None:
    """Raise NotFinite for the first step whose gradient was not finite. Reads from the device once."""
    if not norms:
        return
    finite = torch.stack([torch.isfinite(norm) for _, norm, _ in norms]).tolist()
    for (step, _, keys), good in zip(norms, finite, strict=True):
        if not good:
            raise NotFinite(step, keys)
