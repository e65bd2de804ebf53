"""Which modules of a model an adapter goes into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from pegboard.errors import ConfigError, nearest
from pegboard.nn import Embedding

_PATTERN_CHARACTERS = frozenset("*?[")


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that can be adapted, by name: linear layers, quantised or not, not adapted already."""
    found: dict[str, nn.Module] = {}
    adapted: list[str] = []
    for name, module in model.named_modules():
        if hasattr(module, "base") and hasattr(module, "additive"):
            adapted.append(f"{name}.")
        elif isinstance(getattr(module, "in_features", None), int) and isinstance(
            getattr(module, "out_features", None), int
        ):
            if not name.startswith(tuple(adapted)):
                found[name] = module
    return found


def embeddings(model: nn.Module) -> dict[str, Embedding]:
    """Return the tables of embeddings, by name: plain ones, not adapted already."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Embedding)}


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Let a module take the place that `name` says."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def device_of(base: nn.Module) -> torch.device:
    """Return where the weights of a layer are."""
    tensors = [*base.parameters(), *base.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def is_plain(target: str) -> bool:
    """Whether a target is a name, or the end of one, and no pattern."""
    return not _PATTERN_CHARACTERS.intersection(target)


def named(targets: str | list[str] | None, model: nn.Module) -> str | list[str]:
    """Return the targets of an adapter in a model: where its options name none, those of the model's family."""
    if targets is None:
        return list(getattr(model, "adapter_targets", ())) or ["q_proj", "k_proj", "v_proj", "o_proj"]
    return targets


def select(names: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """Return those of `names` that `targets` mean, in order.

    Raises ConfigError when a target of a list, or the string, matches none, naming the nearest module.
    """
    if targets == "all-linear":
        chosen = list(names)
        if not chosen:
            raise ConfigError(
                "adapter.targets is 'all-linear', but the model has no linear layer", fix="choose another model"
            )
        return chosen
    if isinstance(targets, str) and not re.fullmatch(r"[\w.]+", targets):
        chosen = [name for name in names if re.fullmatch(targets, name)]
        if not chosen:
            raise _no_match([targets], names)
        return chosen
    wanted = [targets] if isinstance(targets, str) else list(targets)
    unmatched = [target for target in wanted if not any(_matches(name, target) for name in names)]
    if unmatched:
        raise _no_match(unmatched, names)
    return [name for name in names if any(_matches(name, target) for target in wanted)]


def _matches(name: str, target: str) -> bool:
    if is_plain(target):
        return name == target or name.endswith(f".{target}")
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _no_match(targets: Sequence[str], names: Sequence[str]) -> ConfigError:
    ends = sorted({name.rpartition(".")[2] for name in names})
    wrong = ", ".join(f"{target!r}{nearest(target, [*ends, *names])}" for target in targets)
    return ConfigError(
        f"adapter.targets: no linear layer of the model matches {wrong}",
        fix=f"the model's linear layers end in: {', '.join(ends) or 'none'}; 'all-linear' means them all",
    )
