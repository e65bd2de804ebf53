"""The models of a run, built from the sections of its config: one for each role."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import Parameter

from pegboard.build import BuiltModel, prepare_model
from pegboard.classifier import SCORE
from pegboard.config import Choice
from pegboard.errors import ConfigError, nearest
from pegboard.interfaces.objective import Objective
from pegboard.opened import OpenedModel, open_any
from pegboard_trainer.config import ModelSection, RoleSection, TrainConfig
from pegboard_trainer.memory import save_memory
from pegboard_trainer.mesh import Placer
from pegboard_trainer.model_folder import portable_base
from pegboard_trainer.noise import EmbeddingNoise
from pegboard_trainer.roles import ModelRole, reference_of
from pegboard_trainer.routing import freeze_routers

if TYPE_CHECKING:
    from pegboard.classifier import HeadKind
    from pegboard.interfaces.adapter import Adapter
    from pegboard.interfaces.platform import Phase
    from pegboard.nn.parallel import Region
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import RecipeSpec, RoleSpec


@dataclass(frozen=True, slots=True)
class Sections:
    """What one role is built from."""

    model: ModelSection
    adapter: Choice | None = None
    quantizer: Choice | None = None


def sections_of(spec: RecipeSpec, config: TrainConfig) -> dict[str, Sections | None]:
    """Return what each role is built from; None where it is the first role with its adapter off. Optional roles may be missing."""
    first, *others = spec.roles
    found: dict[str, Sections | None] = {first.name: Sections(config.model, config.adapter, config.quantizer)}
    for role in others:
        section: RoleSection | None = getattr(config, role.name, None)
        like = found.get(role.like or first.name) or found[first.name]
        assert like is not None
        if section is not None:
            found[role.name] = Sections(section.complete(like.model), section.adapter, section.quantizer)
        elif role.adapter_off and config.adapter is not None:
            found[role.name] = None
        elif not role.optional:
            found[role.name] = like if role.trained else Sections(like.model, None, like.quantizer)
    return found


def build_roles(
    spec: RecipeSpec, config: TrainConfig, registry: Registry, opened: OpenedModel, placer: Placer
) -> dict[str, ModelRole]:
    """Build the model of every role. opened: that of the first role."""
    roles: dict[str, ModelRole] = {}
    sections = sections_of(spec, config)
    for role in spec.roles:
        if role.name not in sections:
            continue
        chosen = sections[role.name]
        if chosen is None:
            roles[role.name] = reference_of(roles[spec.roles[0].name])
            continue
        if roles:
            opened = open_any(registry, chosen.model.path, chosen.model.revision)
        roles[role.name] = _build(role, chosen, config, registry, opened, placer)
    return roles


def _build(
    role: RoleSpec, chosen: Sections, config: TrainConfig, registry: Registry, opened: OpenedModel, placer: Placer
) -> ModelRole:
    section = chosen.model
    head: HeadKind = "scalar" if role.head == "scalar" else "lm"
    options: dict[str, Any] = {
        "platform": section.platform,
        "device": section.device + placer.index,
        "dtype": section.dtype,
        "attention": section.attention,
        "head": head,
        "seed": config.seed,
    }
    _check(role, chosen, opened)
    adapter = None if chosen.adapter is None else registry.create("adapter", chosen.adapter)

    def prepared(adapter: Adapter | None, phase: Phase, region: Region | None) -> BuiltModel:
        more = {**options, "phase": phase, "region": region}
        if adapter is None:  # a folder of an adapter is merged into its base
            return opened.prepare(registry, quantizer=chosen.quantizer, **more)
        quantizer = None if chosen.quantizer is None else registry.create("quantizer", chosen.quantizer)
        return prepare_model(registry, opened.files, adapter=adapter, quantizer=quantizer, **more)

    def again() -> BuiltModel:
        other = None if chosen.adapter is None else registry.create("adapter", chosen.adapter)
        return prepared(other, "decode", None).load()

    built = prepared(adapter, "train", placer.region)
    if role.trained and adapter is None and built.quantizer is not None and not built.quantizer.trains:
        raise ConfigError(
            f"the {role.name}'s weights are quantised, by {type(built.quantizer).__name__}, and cannot be trained",
            fix="train an adapter beside them (adapter=lora), or drop the quantizer",
        )
    built.load()
    if "OMP_NUM_THREADS" not in os.environ:  # the user's own choice of threads counts
        built.platform.configure()
    built.model.train(role.trained)
    if not role.trained or adapter is None:
        built.model.requires_grad_(role.trained)
    if role.trained:
        if config.routing.freeze:
            freeze_routers(built.model)
        freeze(built.model, config.freeze)
        save_memory(built, config.memory)
        if config.noise is not None:
            EmbeddingNoise(built.model, config.noise)
    placer.shard(built)
    registry.hooks.call("model_built", role=role.name, model=built.model)
    base = portable_base(built.files) if adapter is not None else ""
    return ModelRole(built, trained=role.trained, adapter=adapter, base=base, again=again)


def _check(role: RoleSpec, chosen: Sections, opened: OpenedModel) -> None:
    """Raise ConfigError for what would be built and is not what anybody wants."""
    path, adapted = chosen.model.path, opened.adapted
    if adapted is not None and chosen.adapter is not None:
        raise ConfigError(
            f"{path} is an adapter already, and another one is to be trained on it",
            fix="merge it first (peg merge), or drop `adapter` to train the merged weights",
        )
    scored = SCORE in opened.files.tensors or (adapted is not None and SCORE in adapted.whole)
    if role.head == "scalar" and not role.trained and not scored:
        raise ConfigError(
            f"the {role.name} gives scores, and {path} has none: it is no sequence classifier",
            fix=f"name a trained one as {role.name}.path (peg run reward makes one)",
        )


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Train none of the parameters whose names match a pattern.

    Raises ConfigError for a pattern that matches nothing, and when nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"freeze: no parameter matches {pattern!r}{nearest(pattern, names)}",
                fix="patterns are compared with whole names: model.layers.0.*, say",
            )
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("freeze: nothing is left to train", fix="freeze less")


def trained_parameters(roles: Mapping[str, ModelRole], objective: Objective) -> list[tuple[str, Parameter]]:
    """Return what is trained, by name. Those of the first role have the model's own names, others that of their role before it."""
    found: list[tuple[str, Parameter]] = []
    for index, (role, model) in enumerate(roles.items()):
        if model.trained:
            prefix = f"{role}." if index else ""
            found += [(prefix + n, p) for n, p in model.built.model.named_parameters() if p.requires_grad]
    return found + [(f"objective.{n}", p) for n, p in objective.named_parameters()]


def trained_roles(roles: Mapping[str, ModelRole]) -> Sequence[tuple[str, ModelRole]]:
    """Return the roles that are saved, each with its folder's name: `model` for the first, its own for any other."""
    return [("model" if not i else n, r) for i, (n, r) in enumerate(roles.items()) if r.trained]
