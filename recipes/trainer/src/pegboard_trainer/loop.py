"""The training loop. One screen: what a step does, in order."""

from __future__ import annotations

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
from pegboard_trainer.flops import StepCost
from pegboard_trainer.meter import Meter, Reducer
from pegboard_trainer.pace import Pace
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
    """What one step needs. parameters: those that are trained. cost, peak_flops: what a step computes, and what the devices of all ranks
    could in a second; None where utilisation is not asked for.
    """

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
    cost: StepCost | None = None
    peak_flops: float | None = None

    def amounts(self, group: Sequence[Batch]) -> dict[str, float]:
        """Return what a group holds: tokens, those that are learned, and the operations that they take."""
        tokens, trained = sum(sum(b.seq_lens) for b in group), sum(len(b.target_rows) for b in group)
        flops = 0.0 if self.cost is None else sum(self.cost.flops(b.seq_lens, len(b.target_rows)) for b in group)
        return {"tokens": tokens, "trained_tokens": trained, "flops": flops}

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
    pace = Pace(trainer.device, trainer.peak_flops)
    for step in range(run.first_step, run.total_steps + 1):
        taken = [pair for _, pair in zip(range(trainer.accumulate), trainer.batches, strict=False)]
        if not taken:
            raise DataError(f"the data ended before step {step}", fix="leave the files alone while a run reads them")
        factor = trainer.schedule.factor(step - 1, run.total_steps)
        norm = trainer.step([batch for _, batch in taken], factor, meter)
        norms.append((step, norm, [key for keys, _ in taken for key in keys]))
        meter.count(trainer.amounts([batch for _, batch in taken]))
        stopping = run.stop_requested()
        last = step == run.total_steps or stopping
        if run.logs(step) or run.validates(step) or run.saves(step) or last:
            check_finite(norms)
            numbers = meter.take()
            numbers |= {"lr": trainer.optimizer.param_groups[0]["lr"], "grad_norm": float(norm)}
            run.log(step, pace.complete(numbers))
            norms.clear()
            if (run.validates(step) or last) and not stopping:
                run.validate(step)
            if run.saves(step) or stopping:
                run.save(step)
            pace.restart()
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
