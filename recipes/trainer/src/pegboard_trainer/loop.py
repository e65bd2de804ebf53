"""The training loop. One screen: what a step does, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pegboard.errors import DataError, PegboardError
from pegboard.interfaces.objective import Objective, Role
from pegboard.interfaces.schedule import Schedule
from pegboard.types import Batch
from pegboard_trainer.callbacks import Callbacks
from pegboard_trainer.examples import Key
from pegboard_trainer.flops import StepCost
from pegboard_trainer.meter import Meter, Reducer
from pegboard_trainer.pace import Pace
from pegboard_trainer.routing import Routing
from pegboard_trainer.run import Run
from pegboard_trainer.source import BatchSource, take
from pegboard_trainer.update import Update

Taken = Sequence[tuple[list[Key], Batch]]
"""The batches of a step with the keys of their examples; a batch without keys fills up a rank's part and counts for nothing."""


class NotFinite(PegboardError):
    """The loss or the gradient became infinite or not a number at `step`, on the examples `keys`."""

    def __init__(self, step: int, keys: Sequence[Key]) -> None:
        super().__init__(
            f"the gradient of step {step} is not finite", fix="lower optimizer.lr, or look at the rows of that step"
        )
        self.step, self.keys = step, list(keys)


@dataclass(slots=True)
class Trainer:
    """What one step needs. cost, peak_flops: what a step computes, and what the devices of all ranks could in a second; None where
    utilisation is not asked for. routing: who follows the routers of a mixture of experts.
    """

    objective: Objective
    roles: Mapping[str, Role]
    update: Update
    schedule: Schedule
    source: BatchSource
    device: torch.device
    reducer: Reducer
    callbacks: Callbacks
    accumulate: int = 1
    cost: StepCost | None = None
    peak_flops: float | None = None
    routing: Routing | None = None

    def amounts(self, taken: Taken) -> dict[str, float]:
        """Return what the batches hold: tokens, those that are learned, and the operations that they take."""
        group = [batch for keys, batch in taken if keys]
        tokens, trained = sum(sum(b.seq_lens) for b in group), sum(len(b.target_rows) for b in group)
        flops = 0.0 if self.cost is None else sum(self.cost.flops(b.seq_lens, len(b.target_rows)) for b in group)
        return {"tokens": tokens, "trained_tokens": trained, "flops": flops}

    def step(self, taken: Taken, factor: float, meter: Meter) -> Tensor:
        """Take one optimizer step over an accumulation group; return the gradient's norm, still on the device.

        The gradient is that of sum(losses) / sum(denominators), however the same examples are divided into batches and over ranks.
        """
        group = [(batch.to(self.device), float(bool(keys))) for keys, batch in taken]
        counts = [self.objective.denominator(batch) * weight for batch, weight in group]
        total = self.reducer.sum(torch.stack(counts).sum())
        scale = torch.where(total > 0, 1 / total, 0.0)
        self.share_totals(group)
        shares = None if self.routing is None else self.routing.shares(group, self.reducer)
        self.update.begin(factor)
        for number, ((batch, weight), count) in enumerate(zip(group, counts, strict=True)):
            if self.routing is not None and shares is not None:
                self.routing.begin(shares[number])
            if number == len(group) - 1:
                self.update.last_pass()
            output = self.objective(self.roles, batch)
            (output.sum * (scale * weight).to(output.sum.dtype)).backward()
            meter.add({"loss": (output.sum, count), **output.metrics}, weight)
        return self.update.finish()

    @torch.no_grad()
    def share_totals(self, group: Sequence[tuple[Batch, float]]) -> None:
        """Give each batch what its loss needs to know of the whole group, of all ranks; group: batches with their weights."""
        found = [(self.objective.totals(self.roles, batch), weight) for batch, weight in group]
        known = [sums * weight for sums, weight in found if sums is not None]
        if known:
            totals = self.reducer.sum(torch.stack(known).sum(0))
            for batch, _ in group:
                batch.extras["totals"] = totals


def train(trainer: Trainer, run: Run) -> None:
    """Take the steps that are left. `run` says when to log, validate, save and stop. Raises NotFinite before bad weights are saved."""
    meter = Meter(trainer.device, trainer.reducer)
    norms: list[tuple[int, Tensor, list[Key]]] = []
    pace = Pace(trainer.device, trainer.peak_flops)
    for step in range(run.first_step, run.total_steps + 1):
        trainer.callbacks.before_step(step)
        taken = take(trainer.source, trainer.accumulate)
        if not taken:
            raise DataError(f"the data ended before step {step}", fix="leave the files alone while a run reads them")
        norm = trainer.step(taken, trainer.schedule.factor(step - 1, run.total_steps), meter)
        norms.append((step, norm, [key for keys, _ in taken for key in keys]))
        meter.count(trainer.amounts(taken))
        trainer.callbacks.after_step(step)
        run.look(step)
        if run.logs(step) or run.validates(step) or run.saves(step) or run.stopping:
            check_finite(norms)
            norms.clear()
            meter.add(trainer.callbacks.metrics())
            run.log(step, pace.complete({**meter.take(), "lr": trainer.update.rate, "grad_norm": float(norm)}))
            if run.validates(step):
                run.validate(step)
            if run.saves(step) or run.stopping:
                run.save(step)
            pace.restart()
        if run.stopping:
            break


def check_finite(norms: Sequence[tuple[int, Tensor, list[Key]]]) -> None:
    """Raise NotFinite for the first step whose gradient was not finite. Reads from the device once."""
    if not norms:
        return
    finite = torch.stack([torch.isfinite(norm) for _, norm, _ in norms]).tolist()
    for (step, _, keys), good in zip(norms, finite, strict=True):
        if not good:
            raise NotFinite(step, keys)
