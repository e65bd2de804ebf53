"""From a resolved configuration to a finished run folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import Parameter

from pegboard.build import BuiltModel, choose_platform
from pegboard.errors import PegboardError
from pegboard.interfaces.logger import RunInfo
from pegboard.interfaces.objective import Objective
from pegboard.interfaces.recipe import Recipe
from pegboard.opened import open_any
from pegboard.ops import kernel_table
from pegboard.plugins.doors import import_object
from pegboard_trainer.ahead import Ahead
from pegboard_trainer.averages import Averages
from pegboard_trainer.callbacks import Callbacks, FollowingSource, Stages
from pegboard_trainer.checkpoint import Trained, check_same, load_step
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.data import open_data
from pegboard_trainer.determinism import deterministic
from pegboard_trainer.evaluation import evaluation
from pegboard_trainer.flops import StepCost, measured_flops
from pegboard_trainer.in_backward import PerParameter, UpdateInBackward, check_in_backward
from pegboard_trainer.loop import NotFinite, Trainer, train
from pegboard_trainer.mesh import Placer, join
from pegboard_trainer.model_folder import ModelWriter
from pegboard_trainer.models import build_roles, trained_parameters, trained_roles
from pegboard_trainer.patience import Patience
from pegboard_trainer.placement import Placement
from pegboard_trainer.profile import Profile
from pegboard_trainer.roles import ModelRole
from pegboard_trainer.routing import follow
from pegboard_trainer.run import Run, save_rows
from pegboard_trainer.run_folder import claim, make, nothing_left
from pegboard_trainer.saver import Saver
from pegboard_trainer.setting import Setting
from pegboard_trainer.signals import StopRequest
from pegboard_trainer.source import BatchSource, Packed
from pegboard_trainer.update import Update
from pegboard_trainer.world import World

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import RecipeSpec

log = logging.getLogger("pegboard.train")


class Train(Recipe):
    """Trains the roles of a recipe with the recipe's objective."""

    def run(self, spec: RecipeSpec, config: Mapping[str, Any], registry: Registry) -> Path:
        """Run to the end and return the run folder.

        The first Ctrl-C or SIGTERM finishes the step, saves it and raises SystemExit(128 + signal); the second ends the process at
        once, and the last complete step folder stays usable. Raises ConfigError for an output folder that exists.
        """
        schema = import_object(spec.schema or "pegboard_trainer.config:TrainConfig")
        typed = cast(TrainConfig, schema.model_validate({k: v for k, v in config.items() if k != "plugins"}))
        world = join(typed.mesh, choose_platform(registry, typed.model.platform)[1])
        with deterministic() if typed.deterministic else nullcontext():
            try:
                return _run(spec, typed, config, registry, world)
            finally:
                world.close()


def _run(spec: RecipeSpec, typed: TrainConfig, config: Mapping[str, Any], registry: Registry, world: World) -> Path:
    folder = Path(typed.output).expanduser()
    # Together: the first process makes the folder later, which one that looks late would take for another run's.
    resumed = world.together(lambda: claim(folder, typed))
    registry.hooks.call("configure", config=config)
    torch.manual_seed(typed.seed + world.rank)
    opened = open_any(registry, typed.model.path, typed.model.revision)
    tokenizer = opened.tokenizer(registry)
    data = open_data(typed, registry, tokenizer, ranks=world.size, writes=world.first)
    placer = Placer(world, typed.mesh)
    roles = build_roles(spec, typed, registry, opened, placer)
    policy = roles[spec.roles[0].name].built
    objective: Objective = registry.create("objective", config.get("objective") or spec.objective)
    objective.prepare(roles, policy.device)
    named = trained_parameters(roles, objective)
    placement = placer.placement(roles)
    update = _update(typed, registry, policy, named, placement)
    average = None if typed.average is None else Averages(named, typed.average.decay, host=typed.average.host)
    routing = follow((role.built.model for role in roles.values() if role.trained), policy.files.config, typed.routing)
    source = _source(spec, Setting(typed, registry, tokenizer, roles, objective, data, placement, policy.device))
    trainer = Trainer(
        objective=objective,
        roles=roles,
        update=update,
        schedule=registry.create("schedule", typed.schedule),
        source=source,
        device=policy.device,
        reducer=world,
        callbacks=Callbacks(
            [
                Stages(module for role in roles.values() for module in role.built.model.modules()),
                FollowingSource(source),
                *([] if average is None else [average]),
                *([] if routing is None else [routing]),
                Profile(folder, policy.device, world.process, typed.profile),
            ]
        ),
        accumulate=typed.batch.accumulate,
        cost=None if typed.peak_tflops is None else StepCost.of(policy.model),
        peak_flops=_peak_flops(typed, policy, world),
        routing=routing,
    )
    section = typed.validation
    patience = Patience(section.metric, section.greater, section.patience, section.margin)
    trained = Trained(named, update.optimizer, placement, averages={} if average is None else average.values)
    identity = {**typed.identity(ranks=world.size), "rows": data.train.examples.rows}
    first = 0
    if resumed is not None:
        saved, tensors = load_step(resumed, trained)
        check_same(saved["identity"], identity)
        source.restore(saved["data"], tensors)
        objective.restore(saved["objective"])
        patience.restore(saved["patience"])
        if average is not None:
            average.steps = saved["averaged"]
        first = int(saved["step"])
        if first >= data.total_steps:
            return nothing_left(folder, resumed, first, data.total_steps, first=world.first)

    def gather() -> tuple[dict[str, Any], Mapping[str, torch.Tensor]]:
        state: dict[str, Any] = {"identity": identity, "data": source.state(), "objective": objective.state()}
        if average is not None:
            state["averaged"] = average.steps
        return state, source.tensors()

    world.together(lambda: make(folder, config, policy) if world.first else None)
    with StopRequest() as stop:
        run = Run(
            info=RunInfo(typed.name, folder, config, data.total_steps, first),
            registry=registry,
            loggers=[registry.create("logger", choice) for choice in typed.loggers] if world.first else [],
            stop=stop,
            saver=Saver(
                folder,
                _writers(roles, tokenizer, placement, average),
                trained,
                gather,
                number=world.share(os.getpid()),
                keep=typed.checkpoint.keep,
                keep_best=typed.checkpoint.keep_best,
                background=typed.checkpoint.background,
            ),
            evaluate=evaluation(
                trainer, roles, data, world, section.batches, nullcontext if average is None else average.swapped
            ),
            patience=patience,
            log_every=typed.log_every,
            validate_every=section.every,
            save_every=typed.checkpoint.every,
            save_minutes=typed.checkpoint.minutes,
            save_last=typed.checkpoint.last,
            saved=first or None,
        )
        _drive(run, trainer, tokenizer, validate_first=section.first)
    if run.interrupted:
        raise SystemExit(128 + (stop.number or 0))
    return folder


def _update(
    config: TrainConfig,
    registry: Registry,
    policy: BuiltModel,
    named: Sequence[tuple[str, Parameter]],
    placement: Placement,
) -> Update:
    """Return what takes the optimizer's steps."""
    factory = registry.create("optimizer", config.optimizer)
    # Made now: the optimizer may have registered ops of its own.
    replacements = policy.platform.kernels("train", policy.dtype, policy.device.index or 0)
    factory.kernels = kernel_table(replacements, owner=f"platform {policy.platform_name!r}")
    if config.memory.update_in_backward:
        check_in_backward(config)
        return UpdateInBackward(named, PerParameter(factory, named), placement)
    return Update(named, factory.build(named), config.clip, placement)


def _writers(
    roles: Mapping[str, ModelRole], tokenizer: Tokenizer, placement: Placement, average: Averages | None
) -> list[tuple[str, ModelWriter]]:
    """Return the name of each folder of a step, and what writes it: `model` and, of further trained roles, their names; the averages of the
    first role in `average`.
    """
    found = []
    others = [f"{name}." for name in list(roles)[1:]] + ["objective."]
    for name, role in trained_roles(roles):
        found.append((name, ModelWriter(role, tokenizer, placement, "" if name == "model" else f"{name}.")))
        if name == "model" and average is not None:
            found.append(("average", ModelWriter(role, tokenizer, placement, "", lambda: average.of("", others))))
    return found


def _source(spec: RecipeSpec, setting: Setting) -> BatchSource:
    """Return the batches that the recipe makes itself, else those of the data."""
    if spec.batches:
        made: BatchSource = import_object(spec.batches)(setting)
        return made
    train, ahead = setting.data.train, setting.config.batch.ahead
    # Where there are several processes, each makes tensors of its own batches alone.
    batches = Ahead(train, ahead, collate=setting.world.size == 1) if ahead else train
    return Packed(batches, setting.world.rank, setting.world.size)


def _drive(run: Run, trainer: Trainer, tokenizer: Tokenizer, *, validate_first: bool) -> None:
    """Start, train, finish; whatever happens, loggers hear of the end exactly once."""
    run.start()
    status = "failed"
    try:
        if validate_first and run.first_step == 1:
            run.validate(0)
        train(trainer, run)
        run.wait()
        status = "stopped" if run.interrupted else "finished"
        run.message(trainer.source.summary())
        if run.saved is not None:
            run.message(f"model: {run.info.folder / 'final'}")
    except NotFinite as error:
        rows = save_rows(run.info.folder, error.step, error.keys, trainer.source, tokenizer)
        raise PegboardError(f"{error.message}; its rows are in {rows}", fix=error.fix) from error
    except KeyboardInterrupt:
        status = "stopped"
        raise
    finally:
        run.finish(status)


def _peak_flops(config: TrainConfig, built: BuiltModel, world: World) -> float | None:
    """Return what utilisation is a share of, None where it is not asked for. Of a tensor group one process counts, and its part of
    each layer.
    """
    if config.peak_tflops is None:
        return None
    if config.peak_tflops == "measured":
        return measured_flops(built.device, built.dtype) * world.size
    return config.peak_tflops * 1e12 * world.size
