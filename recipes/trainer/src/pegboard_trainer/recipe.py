"""From a resolved configuration to a finished run folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pegboard.build import BuiltModel, build_model, load_tokenizer, open_model
from pegboard.config import dump_config
from pegboard.errors import ConfigError, PegboardError
from pegboard.interfaces.logger import RunInfo
from pegboard.interfaces.objective import Objective, Role
from pegboard.interfaces.recipe import Recipe
from pegboard.plugins.doors import import_object
from pegboard_trainer.checkpoint import check_same, find_resume, load_step, mark_final, prune, save_step
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.data import Data, open_data
from pegboard_trainer.disk import remove_unfinished
from pegboard_trainer.environment import environment
from pegboard_trainer.flops import StepCost, measured_flops
from pegboard_trainer.loop import NotFinite, Trainer, train
from pegboard_trainer.meter import Meter, Single
from pegboard_trainer.model_folder import ModelWriter, portable_base
from pegboard_trainer.roles import ModelRole, reference_of
from pegboard_trainer.run import Run, save_rows
from pegboard_trainer.signals import StopRequest

if TYPE_CHECKING:
    from pegboard.interfaces.adapter import Adapter
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import RecipeSpec

log = logging.getLogger("pegboard.train")


class Train(Recipe):
    """Trains the first role of a recipe with the recipe's objective."""

    def run(self, spec: RecipeSpec, config: Mapping[str, Any], registry: Registry) -> Path:
        """Run to the end and return the run folder.

        The first Ctrl-C or SIGTERM finishes the step, saves it and raises SystemExit(128 + signal); the second ends the process at
        once, and the last complete step folder stays usable. Raises ConfigError for an output folder that exists.
        """
        typed = _typed(spec, config)
        folder = Path(typed.output).expanduser()
        resumed = _claim(folder, typed)
        registry.hooks.call("configure", config=config)
        torch.manual_seed(typed.seed)
        files = open_model(registry, typed.model.path, typed.model.revision)
        tokenizer = load_tokenizer(registry, files)
        data = open_data(typed, registry, tokenizer)
        adapter: Adapter | None = None if typed.adapter is None else registry.create("adapter", typed.adapter)
        built = _build(typed, registry, files, adapter)
        roles = _roles(spec, typed, config, registry, built, adapter)
        named = [(n, p) for n, p in built.model.named_parameters() if p.requires_grad]
        optimizer = registry.create("optimizer", typed.optimizer).build(named)
        trainer = Trainer(
            objective=registry.create("objective", config.get("objective") or spec.objective),
            roles=roles,
            parameters=[p for _, p in named],
            optimizer=optimizer,
            schedule=registry.create("schedule", typed.schedule),
            batches=data.train,
            device=built.device,
            reducer=Single(),
            accumulate=typed.batch.accumulate,
            clip=typed.clip,
            cost=None if typed.peak_tflops is None else StepCost.of(built.model),
            peak_flops=_peak_flops(typed, built),
        )
        identity = {**typed.identity(), "rows": data.train.examples.rows}
        first = 0
        if resumed is not None:
            saved = load_step(resumed, named, optimizer)
            check_same(saved["identity"], identity)
            data.train.restore(saved["data"])
            first = int(saved["step"])
            if first >= data.total_steps:
                return _nothing_left(folder, resumed, first, data.total_steps)
        _make(folder)
        remove_unfinished(folder)
        (folder / "config.yaml").write_text(dump_config(dict(config)))
        (folder / "env.json").write_text(json.dumps(environment(built), indent=1) + "\n")
        writer = ModelWriter(built, tokenizer, adapter, portable_base(files) if adapter is not None else "")

        def write(step: int) -> Path:
            state = {"identity": identity, "data": data.train.state()}
            target = save_step(folder, step, writer, named, optimizer, state)
            mark_final(folder, step)
            prune(folder, typed.checkpoint.keep)
            return target

        with StopRequest() as stop:
            run = Run(
                info=RunInfo(typed.name, folder, config, data.total_steps, first),
                registry=registry,
                loggers=[registry.create("logger", choice) for choice in typed.loggers],
                stop=stop,
                write=write,
                evaluate=_evaluation(trainer, data, built, typed.validation.batches),
                log_every=typed.log_every,
                validate_every=typed.validation.every,
                save_every=typed.checkpoint.every,
                save_last=typed.checkpoint.last,
                saved=first or None,
            )
            _drive(run, trainer, validate_first=typed.validation.first)
        if stop.number is not None and run.saved != data.total_steps:
            raise SystemExit(128 + stop.number)
        return folder


def evaluate(
    objective: Objective, roles: Mapping[str, Role], batches: Any, device: torch.device, limit: int | None = None
) -> dict[str, float]:
    """Return the means of an objective's metrics, and its `loss`, over batches; no gradients."""
    meter = Meter(device, Single())
    with torch.no_grad():
        for number, (_, batch) in enumerate(batches):
            if limit is not None and number >= limit:
                break
            batch = batch.to(device)
            output = objective(roles, batch)
            meter.add({"loss": (output.sum, objective.denominator(batch)), **output.metrics})
    return meter.take()


def _drive(run: Run, trainer: Trainer, *, validate_first: bool) -> None:
    """Start, train, finish; whatever happens, loggers hear of the end exactly once."""
    run.start()
    status = "failed"
    try:
        if validate_first and run.first_step == 1:
            run.validate(0)
        train(trainer, run)
        status = "stopped" if run.stop_requested() and run.saved != run.total_steps else "finished"
        run.message(f"data: {trainer.batches.examples.counts.line()}")
        if run.saved is not None:
            run.message(f"model: {run.info.folder / 'final'}")
    except NotFinite as error:
        rows = save_rows(run.info.folder, error.step, error.keys, trainer.batches.examples)
        raise PegboardError(f"{error.message}; its rows are in {rows}", fix=error.fix) from error
    except KeyboardInterrupt:
        status = "stopped"
        raise
    finally:
        run.finish(status)


def _evaluation(
    trainer: Trainer, data: Data, built: BuiltModel, limit: int | None
) -> Callable[[], dict[str, float]] | None:
    """Return a function that measures the held-out data, or None when there is none."""
    held_out = data.held_out
    if held_out is None:
        return None

    def measure() -> dict[str, float]:
        built.model.eval()
        try:
            metrics = evaluate(trainer.objective, trainer.roles, held_out(), trainer.device, limit)
        finally:
            built.model.train()
        return {f"validation/{name}": value for name, value in metrics.items()}

    return measure


def _typed(spec: RecipeSpec, config: Mapping[str, Any]) -> TrainConfig:
    """Return the config as the recipe's schema has it; `plugins` is the core's own key."""
    schema = import_object(spec.schema or "pegboard_trainer.config:TrainConfig")
    return cast(TrainConfig, schema.model_validate({key: value for key, value in config.items() if key != "plugins"}))


def _claim(folder: Path, config: TrainConfig) -> Path | None:
    """Return the step folder to resume from. Raises ConfigError when the output exists and would be written over."""
    resumed = find_resume(config.resume, folder)
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    continues = resumed is not None and resumed.parent.resolve() == folder.resolve()
    # `auto` also takes over a folder in which a run died before its first step folder.
    unborn = config.resume == "auto" and resumed is None and (folder / "config.yaml").is_file()
    if occupied and not continues and not unborn:
        raise ConfigError(
            f"the output folder {folder} exists", fix="choose another output, or resume=auto to continue the run in it"
        )
    return resumed


def _nothing_left(folder: Path, resumed: Path, step: int, total: int) -> Path:
    """Say that a run has taken its steps, and return its folder. Raises ConfigError when it is another run's folder."""
    reached = f"{resumed} has taken step {step}, and {total} are asked for"
    more = "ask for more with steps=… or epochs=…"
    if resumed.parent.resolve() != folder.resolve():
        raise ConfigError(f"{reached}: nothing is left to train", fix=more)
    mark_final(folder, step)  # a kill may have come between the last save and this
    log.info("the run is finished: %s; nothing is done (%s)\nmodel: %s", reached, more, folder / "final")
    return folder


def _peak_flops(config: TrainConfig, built: BuiltModel) -> float | None:
    """Return what utilisation is a share of, None where it is not asked for."""
    if config.peak_tflops == "measured":
        return measured_flops(built.device, built.dtype)
    return None if config.peak_tflops is None else config.peak_tflops * 1e12


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # /proc, say: the place is there and takes no folder
        raise ConfigError(f"the output folder {folder} cannot be made", fix="choose another output") from None


def _build(config: TrainConfig, registry: Registry, files: Any, adapter: Adapter | None) -> BuiltModel:
    section = config.model
    built = build_model(
        registry,
        files,
        platform=section.platform,
        device=section.device,
        dtype=section.dtype,
        attention=section.attention,
        adapter=adapter,
        quantizer=None if config.quantizer is None else registry.create("quantizer", config.quantizer),
        phase="train",
        seed=config.seed,
    )
    if "OMP_NUM_THREADS" not in os.environ:  # the user's own choice of threads counts
        built.platform.configure()
    built.model.train()
    registry.hooks.call("model_built", role="policy", model=built.model)
    return built


def _roles(
    spec: RecipeSpec,
    config: TrainConfig,
    raw: Mapping[str, Any],
    registry: Registry,
    built: BuiltModel,
    adapter: Adapter | None,
) -> dict[str, Role]:
    """Return the roles of a recipe: the first is trained; a reference is the policy with its adapter off, if it has one."""
    trained, *others = spec.roles
    roles: dict[str, Role] = {trained: ModelRole(built, trained=True)}
    for name in others:
        section = raw.get(name)
        if section is None and name == "reference" and adapter is not None:
            roles[name] = reference_of(built, adapter)
            continue
        frozen_config = config.model if section is None else type(config.model).model_validate(section)
        frozen = _build(
            config.model_copy(update={"model": frozen_config, "adapter": None}),
            registry,
            open_model(registry, frozen_config.path, frozen_config.revision),
            None,
        )
        frozen.model.eval().requires_grad_(False)
        roles[name] = ModelRole(frozen, trained=False)
    return roles
