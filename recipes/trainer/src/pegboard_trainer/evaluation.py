"""Measuring held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.distributed.fsdp import FSDPModule

from pegboard.interfaces.objective import Objective, Role
from pegboard.types import Batch
from pegboard_trainer.data import Data
from pegboard_trainer.examples import Key
from pegboard_trainer.loop import Trainer
from pegboard_trainer.meter import Meter, Reducer, Single
from pegboard_trainer.roles import ModelRole
from pegboard_trainer.source import Packed
from pegboard_trainer.world import World


def evaluate(
    objective: Objective,
    roles: Mapping[str, Role],
    batches: Iterable[tuple[list[Key], Batch]],
    device: torch.device,
    limit: int | None = None,
    reducer: Reducer | None = None,
) -> dict[str, float]:
    """Return the means of an objective's metrics, and its `loss`, over batches; no gradients. limit: at most so many batches."""
    meter = Meter(device, reducer or Single())
    with torch.no_grad():
        for number, (keys, batch) in enumerate(batches):
            if limit is not None and number >= limit:
                break
            batch = batch.to(device)
            output = objective(roles, batch)
            weight = float(bool(keys))
            meter.add({"loss": (output.sum, objective.denominator(batch) * weight), **output.metrics}, weight)
    return meter.take()


def evaluation(
    trainer: Trainer,
    roles: Mapping[str, ModelRole],
    data: Data,
    world: World,
    limit: int | None,
    weights: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[], dict[str, float]] | None:
    """Return a function that measures the held-out data, or None when there is none. weights: a context in which those to be
    measured are in the model.
    """
    own = getattr(trainer.source, "evaluate", None)
    held_out = data.held_out
    if own is None and held_out is None:
        return None
    models = [role.built.model for role in roles.values() if role.trained]

    def measured() -> Mapping[str, float]:
        if own is not None:
            result: Mapping[str, float] = own()
            return result
        assert held_out is not None
        batches = Packed(held_out(), world.rank, world.size)
        return evaluate(trainer.objective, roles, batches, trainer.device, limit, trainer.reducer)

    def measure() -> dict[str, float]:
        for model in models:
            model.eval()
        try:
            with weights():
                metrics = measured()
                for model in models:
                    # What was gathered to measure must not be what the next step computes with.
                    if isinstance(model, FSDPModule):
                        model.reshard()
        finally:
            for model in models:
                model.train()
        return {f"validation/{name}": value for name, value in metrics.items()}

    return measure
