"""Making an empty model the part that one rank of a tensor-parallel group has, as its family's plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pegboard.errors import ConfigError
from pegboard.nn import Attention, CausalLM, Embedding, Head, Linear
from pegboard.nn.parallel import Region, Split, span
from pegboard.types import ParallelRule


@dataclass(slots=True)
class Division:
    """What a rank has. splits: by parameter, those of which it has a part. partial: parameters that every rank has, and whose
    gradients are parts of a sum. whole: modules that are loaded whole and split then, by name (quantised ones).
    """

    region: Region
    splits: dict[str, Split] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    whole: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)


def divide(model: CausalLM, plan: Sequence[ParallelRule], region: Region) -> Division:
    """Make a model on the meta device one rank's part; quantised modules may be in place, adapters not yet.

    Raises ConfigError naming the parameter that does not divide evenly, or the module that cannot be split.
    """
    division = Division(region)
    for name, module in list(model.named_modules()):
        rule = _rule(plan, f"{name}.weight")
        if rule is None or rule.style == "replicate" or isinstance(module, nn.ModuleList):
            continue
        if isinstance(module, (Embedding, Head)):
            if module is not model.score and not (isinstance(module, Head) and model.tied):
                _vocabulary(name, module, division)
        elif isinstance(module, Linear) or hasattr(module, "part"):
            _linear(model, name, module, rule, division)
    _regions(model, division)
    _replicated(model, division)
    return division


def _rule(plan: Sequence[ParallelRule], name: str) -> ParallelRule | None:
    """Return the first rule for a parameter. Those of experts are about another group: which of them are where."""
    return next((rule for rule in plan if rule.style != "expert" and fnmatchcase(name, rule.pattern)), None)


def _vocabulary(name: str, module: Embedding | Head, division: Division) -> None:
    rows = module.weight.shape[0]
    region = division.region
    split = Split(0, (rows,), region.rank, region.world)
    if span(rows, region.world - 1, region.world)[1] < 1:
        raise ConfigError(
            f"{name}: {rows} rows do not divide over {region.world} processes", fix="choose a smaller mesh.tensor"
        )
    division.splits[f"{name}.weight"] = split
    module.weight = nn.Parameter(split.of(module.weight.detach()), requires_grad=module.weight.requires_grad)


def _linear(model: CausalLM, name: str, module: Any, rule: ParallelRule, division: Division) -> None:
    """Narrow one layer: `column` by its outputs, `row` by its inputs."""
    region, column = division.region, rule.style == "column"
    size = module.out_features if column else module.in_features
    split = Split(0 if column else 1, rule.parts or (size,), region.rank, region.world)
    for block in split.blocks:
        if block % (rule.unit * region.world):
            raise ConfigError(
                f"{name}: {block // rule.unit} {'heads' if rule.unit > 1 else 'columns'} do not divide over "
                f"{region.world} processes",
                fix="choose a mesh.tensor that divides them",
            )
    if not isinstance(module, Linear):
        if len(split.blocks) > 1 or (not column and getattr(module, "bias", None) is not None):
            raise ConfigError(
                f"{name}: a {type(module).__name__} of several blocks, or with a bias behind its sum, cannot be split",
                fix="use mesh.shard, or drop the quantizer",
            )
        part = module.part(rule.style, region.rank, region.world)
        division.whole[name] = (module, rule.style)
        part.divided = split
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, part)
        return
    check_split = getattr(module, "check_split", None)
    if check_split is not None:
        check_split(name, rule.style, region.world)
    module.weight = nn.Parameter(split.of(module.weight.detach()), requires_grad=module.weight.requires_grad)
    division.splits[f"{name}.weight"] = split
    if column:
        module.out_features = split.size
        if module.bias is not None:
            module.bias = nn.Parameter(split.of(module.bias.detach()), requires_grad=module.bias.requires_grad)
            division.splits[f"{name}.bias"] = split
    else:
        module.in_features = split.size
        module.late_bias = module.bias is not None
    module.divided = split  # type: ignore[assignment]


def _regions(model: CausalLM, division: Division) -> None:
    """Set up where split layers begin and end, and what is local to a rank in them."""
    region = division.region
    enclosed: list[str] = []
    module: Any
    for name, module in model.named_modules():
        if name.startswith(tuple(enclosed)):
            continue
        encloses = getattr(module, "encloses", False)
        children = [
            child
            for child in (module.modules() if encloses else module.children())
            if getattr(child, "divided", None) is not None
        ]
        if encloses and children:
            enclosed.append(f"{name}.")
        if children and not isinstance(module, nn.ModuleList):
            module.region = region
            if isinstance(module, Attention):
                spec = module.spec
                heads, keys = spec.num_heads // region.world, spec.num_kv_heads // region.world
                module.spec = replace(spec, num_heads=heads, num_kv_heads=keys)
        elif isinstance(module, Attention) and region.sequence:
            raise ConfigError(
                f"{name} is computed by each rank as a whole, which needs all rows", fix="set mesh.sequence=false"
            )
        split = division.splits.get(f"{name}.weight")
        if isinstance(module, Embedding) and split is not None:
            module.region, module.first = region, split.start or 0
    head = model.lm_head if model.score is None else None
    embedding = division.splits.get("model.embed_tokens.weight")
    matrix = embedding if model.tied else division.splits.get("lm_head.weight")
    if head is not None and matrix is not None:
        head.region, head.rows = region, matrix.whole
    if region.sequence and embedding is None:
        raise ConfigError("this family's embedding is not split", fix="set mesh.sequence=false")
    model.region = region


def _replicated(model: CausalLM, division: Division) -> None:
    """Note the parameters that every rank has and of whose gradient each computes a part."""
    inside = [
        f"{name}." for name, module in model.named_modules() if name and getattr(module, "region", None) is not None
    ]
    for name, _ in model.named_parameters():
        if name in division.splits:
            continue
        owner = name.rpartition(".")[0]
        late = getattr(model.get_submodule(owner), "late_bias", False)
        within = name.startswith(tuple(inside)) and not late
        between = name.startswith("model.layers.") and division.region.sequence
        if within or between:
            division.partial.add(name)


def add_adapter(division: Division, parts: Mapping[str, Split | None]) -> None:
    """Take in how an adapter's parameters follow from the layers that they adapt: a Split, or None for a partial gradient."""
    for name, split in parts.items():
        if split is None:
            division.partial.add(name)
        else:
            division.splits[name] = split


@torch.no_grad()
def part_whole(model: CausalLM, division: Division, name: str) -> None:
    """Put this rank's part of a quantised module, whose weights were loaded whole, in its place."""
    module, style = division.whole.pop(name)
    part: Any = module.part(style, division.region.rank, division.region.world)  # type: ignore[operator]
    owner = model.get_submodule(name)
    held = getattr(owner, "base", owner)
    part.divided = held.divided
    part.kernels = held.kernels
    if held is owner:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, part)
    else:
        owner.base = part
